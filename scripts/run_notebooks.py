"""Execute every notebook from top to bottom, in a scratch folder; --save keeps the outputs."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]


def run(path: Path, save: bool) -> None:
    """Execute one notebook; its cells see the repository's packages and a fresh folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}})
        client.execute()
    if save:
        for cell in notebook.cells:  # progress bars are for who runs it
            kept = [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]
            cell.update({"outputs": kept} if "outputs" in cell else {})
        nbformat.write(notebook, path)


def main() -> None:
    """Run them all; stop at the first that fails, with its error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write outputs back to the files")
    arguments = parser.parse_args()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        print(f"running {path.relative_to(ROOT)}", flush=True)
        try:
            run(path, arguments.save)
        except CellExecutionError as error:
            sys.exit(f"{path.name} failed:\n{error}")


if __name__ == "__main__":
    main()
