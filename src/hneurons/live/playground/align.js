// Which characters of a response each token wrote. The text is right; tokens' own texts may show U+FFFD for parts of a
// character, or differ from what they write in context. Then the text that came with a token is taken for its own. Where
// nothing lines up, characters go without a token, never the other way round.

const BROKEN = "\ufffd";
const MOST_TOGETHER = 8; // tokens that one piece may belong to; more than that means that nothing lined up

/** Grows with a response. Pieces that were handed out are final: later text and tokens only add to them. */
export class Alignment {
  text = "";
  #tokens = new Map(); // index -> {text, end}: the token's own text, and how far the response's went when it came
  #at = 0; // characters handed out
  #next = 0; // the first token not handed out
  #open = []; // tokens before it that have no characters yet

  /** What one event brought: text and tokens, [{index, text}]. */
  add(text, tokens) {
    this.text += text;
    const end = tokens.length === 1 ? this.text.length : 0; // of several, it isn't known which wrote what
    for (const token of tokens) this.#tokens.set(token.index, { text: token.text, end });
  }

  /** Text that belongs to no piece yet. */
  get rest() {
    return this.text.slice(this.#at);
  }

  /** New pieces, [{text, tokens: [index]}], in order; with `final` all that is left. */
  advance(final = false) {
    const pieces = [];
    for (; this.#tokens.has(this.#next); this.#next += 1) {
      const { text, end } = this.#tokens.get(this.#next);
      const found = this.#find(text);
      if (found) {
        this.#close(found.start, pieces);
        this.#open = [this.#next];
        this.#close(found.end, pieces);
      } else if (text && text.startsWith(this.rest) && !(final && this.rest)) {
        if (!final && !text.includes(BROKEN)) break; // the rest of it may come yet
        this.#open.push(this.#next);
      } else {
        this.#open.push(this.#next);
        const cut = final && text.startsWith(this.rest); // by a stop string
        if (this.rest && (cut || end > this.#at)) this.#close(cut ? this.text.length : end, pieces);
      }
    }
    if (final) this.#close(this.text.length, pieces);
    return pieces;
  }

  #close(end, pieces) {
    if (end > this.#at) {
      const together = this.#open.length <= MOST_TOGETHER ? this.#open : [];
      pieces.push({ text: this.text.slice(this.#at, end), tokens: together });
      this.#at = end;
    }
    this.#open = [];
  }

  /** Where `token` stands: right here, or a few characters on, after what the open tokens wrote. */
  #find(token) {
    if (!token) return null;
    const at = this.#at;
    if (this.text.startsWith(token, at) && !this.#open.length) return { start: at, end: at + token.length };
    const bare = token.trimStart();
    if (at === 0 && bare && this.text.startsWith(bare)) return { start: 0, end: bare.length };
    if (token.includes(BROKEN)) return null;
    const reach = this.#open.reduce((sum, index) => sum + this.#tokens.get(index).text.length + 2, 4);
    const start = this.text.indexOf(token, at);
    return start >= 0 && start - at <= reach ? { start, end: start + token.length } : null;
  }
}

/** Index into a JavaScript string of a code point's position, which is how the server counts. */
export function codeUnits(text, points) {
  let units = 0;
  for (const character of text) {
    if (points <= 0) break;
    points -= 1;
    units += character.length;
  }
  return units;
}
