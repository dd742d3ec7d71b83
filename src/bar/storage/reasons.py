"""Why a file cannot be used, in a line."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened; its kind, if it has none.

    Examples
    --------
    >>> first_line(RuntimeError("sizes differ\\nat line 5")), first_line(EOFError())
    ('sizes differ', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
