"""Messages of errors, shortened to one line."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters; its type's name if it has no message.

    Examples
    --------
    >>> first_line(RuntimeError("sizes differ\\nat line 5")), first_line(EOFError())
    ('sizes differ', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
