"""Audits a repository whenever it is told to: a process of its own, since damage may end it.

Each line of standard input names a repository and a branch; the answer is one line: sound,
invalid, or unreadable and why.

    python auditor.py < LINES
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmtrace.errors import Trouble
from llmtrace.store.chain import Store
from llmtrace.verify.audit import audit_chain


def main() -> None:
    for line in sys.stdin:
        path, branch = line.split()
        try:
            store = Store.open(Path(path), Path(path) / "keys")
            found = [one for _, each in audit_chain(store, branch) for one in each]
            print("invalid" if found else "sound", flush=True)
        except Trouble as error:
            print(f"unreadable {error}", flush=True)


if __name__ == "__main__":
    main()
