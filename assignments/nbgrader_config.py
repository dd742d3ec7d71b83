"""How nbgrader makes, grades and returns the assignments; it reads this file in the folder of the course."""

import sys
from pathlib import Path

import nbgrader

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for `cutting`, beside this file

c = get_config()  # noqa: F821 (nbgrader hands it over)

c.CourseDirectory.root = str(HERE)
c.CourseDirectory.course_id = "bar"
# A copy of the package that a student hands in would be imported in place of the one that is installed.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "bar"]

c.Execute.extra_arguments = ["--IPKernelApp.log_level=40"]  # errors; a warning of the kernel is none of the student's
c.Execute.timeout = 60  # seconds for a cell; what loops for ever is stopped, and the next cell is run
c.Execute.iopub_timeout = 60  # and seconds for its output to arrive, of which there may be 100 MB; nbgrader's 4 are few
c.OverwriteCells.add_missing_cells = True  # a cell of tests that was deleted is put back
c.IgnorePattern.enabled = True  # nbgrader takes a warning in a cell of tests for a failure
c.IgnorePattern.pattern = "Warning"

c.LimitOutput.max_lines = 200
# nbgrader limits lines, not their lengths
c.Autograde.autograde_preprocessors = [
    "nbgrader.preprocessors.Execute",
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "cutting.CutOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]

# Pages of feedback that need no network and show no hidden test.
c.HTMLExporter.template_name = "feedback"
formgrader = Path(nbgrader.__file__).parent / "server_extensions" / "formgrader" / "templates"
c.HTMLExporter.extra_template_basedirs = [str(HERE / "templates"), str(formgrader)]
