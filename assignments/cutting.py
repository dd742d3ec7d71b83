"""A step of nbgrader's grading: outputs that are too long are cut, also those of a single line."""

from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode
from traitlets import Bool, Integer


class CutOutput(Preprocessor):
    """Cut each text of an output to a number of characters."""

    enabled = Bool(True, help="whether it is done").tag(config=True)
    longest = Integer(20_000, help="characters of a text that are kept").tag(config=True)

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        for output in cell.get("outputs", []):
            for place in (output, output.get("data", {})):
                for name, text in place.items():
                    if isinstance(text, str) and len(text) > self.longest:
                        place[name] = text[: self.longest] + "\n... cut ..."
        return cell, resources
