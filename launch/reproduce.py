"""Re-measures the claims of every paper, one after the other, in one report.

  python -m launch.reproduce --workdir=out
  python -m launch.reproduce --only=git_rebasin --scale=digits --workdir=out

Each paper also has its own report in WORKDIR/papers/PAPER. The exit code is 1 when a paper fails,
or when a claim does not hold and the report gives no reason for it; the others run all the same.
"""

import importlib
import json
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from launch import _app, _devices, _flags, _workdir

PAPERS = {
    "git_rebasin": "Git Re-Basin: merging models modulo permutation symmetries",
    "pleas": "PLeaS: merging models with permutations and least squares",
    "ntba": "NTBA: few-shot backdoor audits through the neural tangent kernel",
    "flip": "FLIP: how few wrong labels backdoor a training pipeline",
    "shadow": "Shadow learning: a federated backdoor defence that survives continual training",
    "zonodual": "ZonoDual: certified bounds for ReLU networks",
    "private_ols": "Private least squares: an error that does not depend on the condition number",
    "gcq": "GCQ: prompts found by asking, and what they cost",
    "extraction": "Extraction: how much of its training data a language model gives away",
    "datacomp": "DataComp: filter the pool, train the fixed recipe, score zero-shot",
}


def main(argv: Sequence[str]) -> int:
    """Runs the papers that the command line asks for.

    Args:
      argv: program name and flags.

    Returns:
      The exit code: 1 when a paper fails or a claim does not hold without a reason, else 0.
    """
    with _app.one_sentence("reproduce"), _app.interruptible("reproduce"):
        values = _flags.common_flags("out")
        flags.DEFINE_list("only", None, "papers to run, all by default", flag_values=values)
        flags.DEFINE_enum(
            "scale",
            "tiny",
            ["tiny", "digits"],
            "which config of each paper (digits, or what takes its place)",
            flag_values=values,
        )
        flags.DEFINE_boolean("list", False, "print the papers and stop", flag_values=values)
        for argument in _flags.parse(values, argv):
            _flags.refuse(argument, values)
        if values.help:
            print(_flags.help_text(__doc__, values))
            return 0
        if values.list:
            print("\n".join(f"{paper:<14} {title}" for paper, title in PAPERS.items()))
            return 0
        workdir = pathlib.Path(values.workdir)
        studies = _studies(values, workdir)
        for study in studies:
            _workdir.check_workdir(study, values)
        report = workdir / "report.html"
        if report.exists() and not (values.resume or values.overwrite):
            raise _flags.UserError(
                f"--workdir: {report} is there already; --resume or --overwrite replaces it"
            )
        _devices.set_environment(values)
        _devices.join_processes(values)
        mesh = _devices.make_mesh(values)
        failures = {}
        start = time.monotonic()
        for i, study in enumerate(studies, start=1):
            prefix = f"[{i}/{len(studies)}] "
            if _devices.is_leader():
                minutes, seconds = divmod(round(time.monotonic() - start), 60)
                print(
                    f"{prefix}after {minutes}:{seconds:02}", _app.headline(study, mesh), flush=True
                )
            failures[study.paper] = _run(study, values, mesh, prefix)
        if not _devices.is_leader():
            return 0
        return _report(studies, failures, workdir)


def _studies(values: flags.FlagValues, workdir: pathlib.Path) -> list[_app.Study]:
    studies = []
    for paper in dict.fromkeys(values.only or PAPERS):
        if paper not in PAPERS:
            near = _flags.did_you_mean(paper, PAPERS) or f"; there are {', '.join(PAPERS)}"
            raise _flags.UserError(f"--only: there is no paper {paper!r}{near}")
        config, label = _flags.load_config(paper, _config_name(paper, values.scale))
        command = _app.command(paper, label, values)
        study = _app.Study(paper, PAPERS[paper], config, label, command, workdir / "papers" / paper)
        studies.append(study)
    return studies


def _config_name(paper: str, scale: str) -> str:
    """Returns the name of a paper's config; a paper without digits has another small set."""
    names = [path.stem for path in _flags.config_files(paper)]
    others = [name for name in names if name not in ("tiny", "paper")]
    return scale if scale in names or not others else others[0]


def _run(study: _app.Study, values: flags.FlagValues, mesh, prefix: str) -> str:
    """Runs one paper and returns why it failed, or nothing."""
    if values.resume and (study.workdir / "claims.json").exists():
        return ""  # finished earlier, with this config: check_workdir has compared it

    def run(*args, **kwargs) -> _app.Result:
        module = importlib.import_module(f"launch.{study.paper}")
        _app.check_config(getattr(module, "check", None), study, values)
        return module.run(*args, **kwargs)

    try:
        _app.run_study(run, study, values, mesh, prefix=prefix)
    except Exception as error:
        failure = _app.explain(error, study) or (
            f"{type(error).__name__}: {error} (traceback in {study.workdir / 'error.log'})"
        )
        if _devices.is_leader():
            print(f"{study.paper}: failed: {failure}", file=sys.stderr)
        return failure
    return ""


def _report(studies: Sequence[_app.Study], failures: dict[str, str], workdir: pathlib.Path) -> int:
    """Writes the report of all papers, prints its claims and returns the exit code."""
    from jaxml import report

    sections = []
    for study in studies:
        if failures[study.paper]:
            sections.append(report.Section(study.title, error=failures[study.paper]))
            continue
        saved = json.loads((study.workdir / "claims.json").read_text(encoding="utf-8"))
        plots = sorted((study.workdir / "plots").glob("*.png"))
        sections.append(
            report.Section(
                study.title,
                claims=[report.Claim(**claim) for claim in saved],
                figures={_workdir.caption(path.stem): path.read_bytes() for path in plots},
                link=f"papers/{study.paper}/report.html",
            )
        )
    page = workdir / "report.html"
    page.write_text(report.render("The claims, re-measured", sections), encoding="utf-8")
    claims = [claim for section in sections for claim in section.claims]
    _app.print_claims(claims)
    print(page)
    return int(any(failures.values()) or any(claim.failed for claim in claims))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
