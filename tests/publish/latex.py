"""Compiles LaTeX where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = ("booktabs", "graphicx")


def compile_latex(folder: Path, body: str) -> str:
    """Compile a document with `body` in a folder and return what LaTeX said.

    Skips the test where pdflatex or a package that the tables need is not installed.
    """
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here: the source is parsed by other tests only")
    for package in PACKAGES:
        found = subprocess.run(["kpsewhich", f"{package}.sty"], capture_output=True, check=False)
        if found.returncode:
            pytest.skip(
                f"no LaTeX package {package} here: the source is parsed by other tests only"
            )
    packages = ",".join(PACKAGES)
    document = (
        r"\documentclass{article}\usepackage[a4paper,margin=1in]{geometry}"
        rf"\usepackage{{{packages}}}\begin{{document}}{body}\end{{document}}"
    )
    (folder / "page.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout
