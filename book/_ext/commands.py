"""Sphinx extension: in a block of commands, a line that begins with # is a comment, not a prompt of root."""

from pygments.lexer import RegexLexer, bygroups, using
from pygments.lexers import BashLexer
from pygments.token import Comment, Generic


class CommandsLexer(RegexLexer):
    """Comments, commands behind a dollar sign, and what they print."""

    name = "Commands"
    tokens = {  # noqa: RUF012 - as Pygments has it
        "root": [
            (r"#.*\n", Comment.Single),
            (r"(\$ )((?:.*\\\n)*.*\n)", bygroups(Generic.Prompt, using(BashLexer))),
            (r".*\n", Generic.Output),
        ]
    }


def setup(app):
    """Register with Sphinx, in place of Pygments' own lexer."""
    app.add_lexer("console", CommandsLexer)
    return {"parallel_read_safe": True}
