"""A run as Python sees it: reads the run folder, never imports torch."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from hneurons.errors import RunError
from hneurons.extras import need
from hneurons.intervals import shown, spread
from hneurons.neurons.card import Card
from hneurons.runfolder import Json, RunFolder, read_json


class Run:
    """A complete or partial run folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Json = RunFolder(self.path).load()

    @property
    def card(self) -> Card:
        """The H-Neurons with their probe."""
        return Card.load(self.path / "neurons.json")

    @property
    def evaluation(self) -> Json:
        """The existence study: evaluation.json."""
        return read_json(self.path / "evaluation.json")

    @property
    def impact(self) -> Json:
        """The impact study: impact.json. Raises RunError if there is none, or it is of other H-Neurons."""
        return self._study("impact")

    @property
    def verdict(self) -> str:
        """The verdict on existence in one sentence."""
        return str(self.evaluation["verdict"]["sentence"])

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self.path / "report.html"

    def evaluate(self, *on: Any, **options: Any) -> Run:
        """Score the card on other data sets: see `hneurons.studies.evaluate.evaluate_run`, which loads torch."""
        from hneurons.studies.evaluate import evaluate_run

        return evaluate_run(self, on, **options)

    @property
    def origin(self) -> Json:
        """The origin study: origin.json. Raises RunError if there is none, or it is of other H-Neurons."""
        return self._study("origin")

    def trace(self, *base: Any, **options: Any) -> Run:
        """Trace the H-Neurons to other checkpoints: see `hneurons.studies.origin.origin`, which loads torch."""
        from hneurons.studies.origin import origin

        return origin(self, base, **options)

    def _study(self, name: str) -> Json:
        path = self.path / f"{name}.json"
        if not path.exists():
            raise RunError(f"{self.path} has no {name} study.", f"Make one with `hneurons {name}`.")
        found = read_json(path)
        # Older versions didn't record whose neurons they studied.
        if found.get("card") not in (None, self.card.neurons_hash):
            raise RunError(f"{path} is of other H-Neurons than the run's card.", f"Run `hneurons {name}` again.")
        return found

    def rows(self) -> list[Json]:
        """One flat row a classifier and data set: AUROC and accuracy with their intervals."""
        rows: list[Json] = []
        for name, data in self.evaluation["datasets"].items():
            rows.append(_row(name, "H-Neurons", data["h_neurons"]))
            for kind, random in data["random"].items():
                row = {"data": name, "classifier": f"random neurons ({kind.replace('_', '-')})", "n": data["n"]}
                row |= {"auroc": random["mean_auroc"], "accuracy": random.get("mean_accuracy")}
                rows.append(row)
            rows += [_row(name, baseline, values) for baseline, values in data["baselines"].items()]
        return rows

    def table(self) -> str:
        """The paper's Table 1 for this run: random neurons against H-Neurons, a line a data set."""
        head = ("data set", "n", "random: accuracy (range)", "H-Neurons: accuracy", "random: AUROC", "H-Neurons: AUROC")
        lines: list[tuple[str, ...]] = [head]
        for name, data in self.evaluation["datasets"].items():
            random, own = data["random"]["uniform"], data["h_neurons"]
            lines.append(
                (
                    name, f"{data['n']:,}", spread(random["accuracy"], 100, 1), shown(own["accuracy"], 100, 1),
                    spread(random["auroc"]), shown(own["auroc"]),
                )
            )  # fmt: skip
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)

    def to_pandas(self) -> Any:
        """`rows()` as a DataFrame."""
        return need("pandas", "pandas").DataFrame(self.rows())

    def __repr__(self) -> str:
        done = [name for name, stage in self.manifest["stages"].items() if stage.get("state") == "done"]
        model = self.manifest["model"]["id"]
        if (self.path / "evaluation.json").exists():
            return f"<Run {self.path} of {model}: {self.verdict}>"
        return f"<Run {self.path} of {model}: stages done: {', '.join(done) or 'none'}>"

    def _repr_html_(self) -> str:
        if not (self.path / "evaluation.json").exists():
            return f"<p>{html.escape(repr(self)[1:-1])}</p>"
        body = "".join(
            f"<tr><td>{html.escape(str(row['data']))}</td><td>{html.escape(str(row['classifier']))}</td>"
            f"<td>{row['auroc']:.3f}</td><td>{_bounds(row)}</td><td>{row['n']}</td></tr>"
            for row in self.rows()
        )
        head = "<tr><th>data</th><th>classifier</th><th>AUROC</th><th>95 %</th><th>n</th></tr>"
        return f"<p>{html.escape(self.verdict)}</p><table>{head}{body}</table>"


def _row(data: str, classifier: str, values: Json) -> Json:
    auroc = values["auroc"]
    return {
        "data": data,
        "classifier": classifier,
        "n": auroc["n"],
        "auroc": auroc["value"],
        "auroc_low": auroc["low"],
        "auroc_high": auroc["high"],
        "accuracy": values["accuracy"]["value"],
        "accuracy_low": values["accuracy"]["low"],
        "accuracy_high": values["accuracy"]["high"],
    }


def _bounds(row: Json) -> str:
    return f"{row['auroc_low']:.3f} to {row['auroc_high']:.3f}" if row.get("auroc_low") is not None else ""
