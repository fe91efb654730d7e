"""Which clause of a response commits to an answer, and whether it refuses: read without any gold answer.

The alias judge looks for an accepted answer in that clause, and the span finder marks the answer in the same clause.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hneurons.answers.normalise import clauses, normalise, word_set
from hneurons.types import Span

FUNCTION_WORDS = word_set(
    "an the i you he she it we they me him her us them my your his its our their this that these "
    "those there here what who whom whose which when where why how is are was were be been being am "
    "isnt wasnt do does did has have had having will would can could may might must shall should of "
    "in on at to for from with by as into onto over under about between during and or but nor so if "
    "than then not no also very just only both either neither while though although because since "
    "whether such some any thats hes shes theyre ive im"
)
FILLERS = word_set(
    "sure certainly course great good question answer answers hello hi thank thanks ok okay yes well "
    "let sorry apologize apologise apologies unfortunately know think believe guess say maybe "
    "probably perhaps possibly likely correct right actually commonly usually generally typically "
    "often sometimes simply called known named referred name term word following final short however "
    "think best youre asking called"
)
PARTICIPLES = word_set(
    "called known named titled located situated found written made created invented discovered "
    "developed painted composed directed produced manufactured founded referred considered used born "
    "based spelled spelt been believed given represented denoted said attributed done played sung "
    "performed recorded released published established designed built won awarded set held"
)
_PLEASANTRIES = word_set("sure certainly of course hello hi ok okay thank thanks you sorry im apologize i apologies my")
_REGRETS = word_set("sorry apologize apologise apologies")
COPULAS = word_set("is was are were be means equals became isnt wasnt arent werent")
_SYMBOLS = word_set("i as in he at be am no")  # chemical symbols that are also words
_AUXILIARIES = COPULAS | word_set("do does did has have had can could will would may might should must be been")
_DENIALS = word_set("not isnt wasnt arent")
_PRONOUNS = word_set("it its that thats this he hes she shes they theyre there these which who")
NEGATIONS = word_set(
    "not isnt wasnt arent werent never neither nor cannot cant doesnt didnt dont wont unlike instead rather"
)

# Refusals, matched on normalised text: no case, no apostrophes, no articles; "isnt" as "is not".
_FIRST_PERSON = re.compile(
    r"(?<!is )(?<!was )(?<!called )(?<!titled )(?<!named )\b(?:"
    + "|".join(
        (
            r"(?:i|we) (?:(?:really|honestly|simply|just|currently|still|actually|personally) )?"
            r"(?:(?:do|did|have|can|could|am|was|will|would) not|cant|cannot|wont|have no|had no|know of no|lack|"
            r"am (?:unable|unaware|uncertain|unsure|aware of no))\b(?! (?:think|believe)\b)",
            r"im (?:\w+ )?(?:not|unable|unsure|uncertain|unaware|unfamiliar|just ai|only ai|aware of no)\b",
            r"(?:i have|ive) (?:never heard|no idea)|no idea|do not know|not sure|not aware of|"
            r"not familiar with|beyond my (?:knowledge|abilities)|my knowledge cutoff",
            r"as (?:large )?(?:ai|language model)|as artificial intelligence",
        )
    )
    + ")"
)
_GIVE = "exist|provide|contain|mention|specify|include|state|appear|have enough|seem to (?:be|exist)"
_FIND = "determined|found|verified|answered|identified|confirmed|known|specified|disclosed|provided"
_IMPERSONAL = re.compile(
    r"\b(?:"
    + "|".join(
        (
            r"not (?:specified|provided|mentioned|stated|given|available|disclosed|listed|publicly|explicitly|"
            r"enough information|possible|applicable)",
            rf"not been (?:\w+ )?(?:{_FIND})|(?:cannot|cant|can not|could not) be (?:\w+ )?(?:{_FIND})",
            r"not (?:\w+ )?(?:known|clear|recogni[sz]ed|documented|certain)(?! (?:for|as|to be)\b)",
            r"not (?:\w+ )?(?:real|existing|actual|valid)\b",
            rf"(?:does|do|did) not (?:\w+ )?(?:{_GIVE})|never (?:\w+ )?existed|is not any\b",
            r"is not enough (?:information|context|data|detail)|(?:not in|outside) my (?:knowledge|training)",
            r"(?:is|are|was|were) non ?existent|not (?:\w+ )?(?:correspond to|match|refer to) any\b",
            r"no (?:(?:specific|public|available|known|further|reliable|verifiable|definitive|clear|"
            r"additional|official|credible|relevant) )*(?:information|records?|evidence|data|answers?|mention|"
            r"indications?|details?|context|such|results?|way to|known|texts?|sources?)\b",
            r"no (?:widely|well|commonly|generally|publicly|currently) (?:known|recogni[sz]ed|documented)",
            r"nothing (?:\w+ )?(?:is|was) (?:\w+ )?known(?! (?:for|as|to)\b)|(?:no one|nobody) (?:\w+ )?knows",
            r"(?:is|are|was|were|remains?|currently|still|largely) unknown"
            r"(?= (?:to|at|and|as|because|by|in|for|who|how)\b|$)",
            r"(?:is|are|was|were|remains?) (?:unclear|uncertain|undetermined|unspecified|undisclosed)",
            r"insufficient|none of (?:information|these|above|options)|unable to|impossible to|hard to say|it depends",
            r"(?:cannot|cant) (?:determine|provide|answer|say)|difficult to (?:determine|say)",
            r"need(?:s|ed)? more|more (?:context|information|details|specific)",
            r"(?P<doubt>(?:is|be|are|was|purely|likely|possibly|entirely|seems|appears|sounds)(?: \w+){0,2} "
            # Only as the clause's last word: "is a fictional novel by Dumas" says who wrote it.
            r"(?:(?:fictional|fictitious|hypothetical|made up)(?= ?\w*$)|(?:misspell\w*|typo)\b))",
            r"please (?:provide|clarify|specify|let me|check|consult|give|try|rephrase|note)|let me know|feel free",
            r"(?:could|can|would) you (?:please )?(?:provide|clarify|specify|give|rephrase|like|tell)",
            r"recommend (?:\w+ )?(?:consulting|checking|contacting|searching|looking)",
            r"you (?:may|should|can|could|might) (?:\w+ )?(?:consult|check|contact|refer|visit|search|find|try|look)",
        )
    )
    + ")"
)
_WHOLE = re.compile(
    r"(?:(?:answer|it|this|that|author|artist|name|date) (?:is )?)?(?:unknown|unclear|unspecified|unavailable|"
    r"undetermined|uncertain|not sure|no comment|no answer|none|not given|not stated|n a|not applicable|"
    r"idk|dunno|unanswerable|nobody knows|no one knows|information (?:is )?unavailable|"
    r"unknown (?:author|artist|origin|at this time|person))|(?:im )?(?:so |very |truly )?sorry|i apologi[sz]e"
)
# Words that may stand before an impersonal refusal without being an answer: "The exact date is not known".
_GENERIC = word_set(
    "exact specific precise information text context passage article details detail date author identity location "
    "manufacturer creator year person number place origin product company topic subject appears seems sufficient model "
    "it actual official true currently time there real entity based provided given"
)

_CONTRACTED = re.compile(r"\b(is|are|was|were|do|does|did|has|have|had|could|would)nt\b")
# "As of my last update in 2023, ..." dates what follows and says nothing of its own.
_DATED = re.compile(
    r"\b(?:(?:as of|up to|to best of|based on|to) my (?:\w+ ){0,2}?"
    r"(?:(?:knowledge|training|update|cut ?off|data)\b ?)+(?:in (?:\w+ ){0,2}\d{4}\b ?)?|"
    r"as of (?:now|today|(?:\w+ ){0,2}\d{4})\b ?)"
)
# "There is no river called X", "no company by that name": the thing asked about does not exist.
_NO_NAME = re.compile(
    r"\b(?:no one|nobody|no|there (?:is|are|was|were) not|never (?:been|was)) (?P<kind>(?:\w+ ){0,7}?)"
    r"(?:(?:called|named|titled|known as|(?:by|with) name(?: of)?) (?P<name>.+)|"
    r"(?:by|with|of|under|has|bears) (?:that|this|such)(?: exact)? name\b)"
)
# "There is no Treaty of X": a name is told by its capitals, where "no president of France" is a claim.
_NO_TITLE = re.compile(
    r"\b[Tt]here(?:['’]s| is| are| was| were) no (?:[a-z]+ )?[\"“‘'*_]*"
    r"(?P<name>[A-Z][\w'’-]*(?: (?:(?:of|the|in|to|a|and|&) )*[A-Z0-9][\w'’-]*)*)[\"”’'*_]*(?: exists?)?[.!]*$"
)
# "X is not a river that I know of"
_NOT_TO_ME = re.compile(
    r"\b(?:no|not|nobody|none|never)\b(?!.*\b(?:than|other|except|besides)\b).*"
    r"\b(?:im|(?:i|we)(?: (?:can|could|have|ever|am|currently|personally))*) "
    r"(?:know of|recogni[sz]e|find|verify|identify|confirm|aware of|familiar with|heard of)$"
)
_EMPTY = FUNCTION_WORDS | FILLERS | _GENERIC
_NO_KIND = _AUXILIARIES | word_set("by for to with all every")  # "no powers shared by all people called X"
_AFTER_NAME = FUNCTION_WORDS | FILLERS | word_set("exists exist existed available approved listed registered recorded")
# "You may be thinking of Y" offers another question and not an answer.
_ASIDE = re.compile(
    rf"{_DATED.pattern}$|(?=.*\b(?:if|did|do|perhaps|maybe|possibl[ey]|may|might|could|probably)\b)(?:\w+ ){{0,4}}?"
    r"you(?:re)? (?:\w+ ){0,3}?(?:mean|meant|thinking of|referring to|looking for|asking about|confusing)\b"
)
_NO_THING = re.compile(r"(?:theres|there (?:is|are|was|were)) no\b")
_NOTHING = word_set("nobody none nothing nowhere")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response does, read without gold answers."""

    claim: Span | None
    """Characters of the clause that commits to an answer; None when no clause does."""
    refused: bool
    """Whether some clause declines to answer. With a claim as well, the claim counts."""


def echoes(token: str, question: frozenset[str]) -> bool:
    """Whether `token` repeats a question token, inflection aside (call, called)."""
    if token in question:
        return True
    stem = 4 if len(token) < 7 else 5
    return (
        len(token) > 3
        and token.isalpha()
        and any(
            len(word) > 3 and word[:stem] == token[:stem] and word.isalpha() and abs(len(word) - len(token)) <= 4
            for word in question
        )
    )


@lru_cache(maxsize=8192)
def question_words(question: str) -> tuple[tuple[str, ...], frozenset[str], str]:
    """Tokens, their set, and the focus: the question's first content token, what it asks for."""
    tokens = normalise(question)
    focus = next((token for token in tokens if token not in FUNCTION_WORDS and token not in FILLERS), "")
    return tokens, frozenset(tokens), focus


def _spelt(tokens: Sequence[str]) -> str:
    """The tokens as text, with "isnt" as "is not"."""
    return _CONTRACTED.sub(r"\1 not", " ".join(tokens))


def refuses(tokens: tuple[str, ...], question: frozenset[str]) -> bool:
    """Whether a clause declines to answer, asks back, or says that the thing asked about does not exist."""
    text = " ".join(tokens)
    if _WHOLE.fullmatch(text) and not (tokens[-1] == "none" and {"how", "many"} <= question):
        return True
    text = _DATED.sub("", _spelt(tokens)).strip() or text
    if _FIRST_PERSON.search(text) or _unknown_name(text, question):
        return True
    found = _IMPERSONAL.search(text)
    if found and question.issuperset(found.group().split()):
        return False  # "Unicorns never existed" answers "Which animals never existed?"
    if found:
        # "Hamlet is a fictional prince" is an answer
        return _fresh(text[: found.start()], question) <= (0 if found.group("doubt") else 1)
    found = _NOT_TO_ME.search(text)
    return bool(found) and _fresh(text, question) <= 2


def _fresh(text: str, question: frozenset[str]) -> int:
    """How many words of `text` say something that the question doesn't."""
    return sum(token not in _EMPTY and not echoes(token, question) for token in text.split())


def _unknown_name(text: str, question: frozenset[str]) -> bool:
    """Whether a clause says that nothing has the name that the question asks about."""
    found = _NO_NAME.search(text)
    if not found or _fresh(text[: found.start()], question) or not _NO_KIND.isdisjoint(found["kind"].split()):
        return False
    first, *rest = (found["name"] or "").split()[:2] or ("",)
    return not first or (first in question and all(token in question | _AFTER_NAME for token in rest))


def read(question: str, text: str) -> Reading:
    """Which clause of `text` commits to an answer.

    The first clause that says something beyond the question *and* speaks to what it asks for (repeats its
    focus word, starts with "it", "that"..., says "answer", or is only a few words) wins over one that
    merely says something new: "Sydney is the largest city; the capital is Canberra" commits to Canberra.
    Refusals, pleasantries, echoes of the question and clauses that only deny something commit to nothing; a
    denial counts if there is no other clause.
    """
    asked, words, focus = question_words(question)
    refused = False
    rest: list[tuple[int, Span]] = []
    for order, span in enumerate(clauses(text)):
        tokens = normalise(text[span.start : span.end])
        regrets = not _REGRETS.isdisjoint(tokens[:3]) and len(tokens) <= 6 and COPULAS.isdisjoint(tokens)
        if not tokens or set(tokens) <= _PLEASANTRIES or regrets:
            refused = refused or regrets
            continue
        if _declines(text[span.start : span.end], tokens, asked, words):
            refused = True
            continue
        rank = _rank(tokens, asked, words, focus, asks=text[span.end - 1] in "?？")
        if _ASIDE.match(" ".join(tokens)):
            rank = max(rank, 3)
        if rank < 9:
            rest.append((rank * 1000 + order, span))
    best = min(rest, key=lambda ranked: ranked[0], default=None)
    if best is None or (refused and best[0] >= 3000):
        return Reading(None, refused)
    return Reading(best[1], refused)


def _declines(clause: str, tokens: tuple[str, ...], asked: tuple[str, ...], words: frozenset[str]) -> bool:
    """Whether a clause refuses, with its capitals and its "No," seen as well."""
    if clause[:3].lower() == "no,":
        tokens = tokens[1:]  # "No, the river called X ..." denies no river
        if not _AUXILIARIES.isdisjoint(asked[:1]) and not _FIRST_PERSON.search(_spelt(tokens)):
            return False  # "No, vampires do not exist" answers "Are vampires real?"
    title = _NO_TITLE.search(clause)
    return refuses(tokens, words) or bool(title and words.issuperset(normalise(title["name"])))


def says_nobody(question: str, claim: str) -> bool:
    """Whether a clause names nothing: "Nobody", "No one won it"."""
    words, tokens = question_words(question)[1], normalise(claim)
    named = tokens[0] in _NOTHING or tokens[:2] == ("no", "one")
    return named and not any(_fresh(token, words) for token in tokens[1:] if token != "one")


def _rank(tokens: Sequence[str], asked: tuple[str, ...], words: frozenset[str], focus: str, *, asks: bool) -> int:
    """How directly a clause answers: 0 does, 1 says something new, 2 only denies, 3 echoes a little, 9
    nothing."""
    if asks and len(tokens) > 4:
        return 9
    content = [token for token in tokens if token not in FUNCTION_WORDS and token not in FILLERS]
    fresh = [token for token in content if not echoes(token, words)]
    first, second, last = tokens[0], tokens[1] if len(tokens) > 1 else "", tokens[-1]
    if second and tokens[-2] in COPULAS and last in _SYMBOLS:
        return 0  # "The symbol for iodine is I"
    if first in _SYMBOLS and second in COPULAS and not fresh:
        return 0  # "He is the symbol for helium"
    repeated = any(tokens.count(token) > asked.count(token) for token in set(content)) and not _circular(tokens)
    short = len(tokens) <= 4
    if not fresh and not repeated:
        if content and not asks and (first == "its" or f"{first} {second}" in ("it is", "answer is")):
            return 2  # "It is mother of pearl", when the question says it too
        if content and ("or" in asked or len(tokens) <= 3):
            return 1
        return 3 if short else 9
    if (first in NEGATIONS and second != "only") or _NO_THING.match(" ".join(tokens)):
        return 2
    if not _DENIALS.isdisjoint(tokens) and not _affirms(tokens):
        return 2
    direct = first in _PRONOUNS or "answer" in tokens or (short and COPULAS.isdisjoint(tokens))
    return 0 if direct or (focus and any(echoes(token, frozenset((focus,))) for token in tokens)) else 1


def _circular(tokens: Sequence[str]) -> bool:
    """Whether both sides of the first copula say the same: "the capital is the capital"."""
    at = next((i for i, token in enumerate(tokens) if token in COPULAS), 0)
    return bool(at) and tokens[:at] == tokens[at + 1 :]


def _affirms(tokens: Sequence[str]) -> bool:
    """Whether a clause with a negation also asserts: "Canberra and not Sydney" does, "it is not Sydney"
    doesn't."""
    index = next(i for i, token in enumerate(tokens) if token in _DENIALS)
    if "only" in tokens[index + 1 : index + 2]:
        return True
    return tokens[index] == "not" and index > 1 and tokens[index - 1] not in _AUXILIARIES | _PRONOUNS
