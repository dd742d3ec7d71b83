"""``python -m bar``, which torchrun needs: ``torchrun --nproc-per-node 4 -m bar run``."""

from bar.cli import main

main()
