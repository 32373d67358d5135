# SPDX-License-Identifier: Apache-2.0
"""Writes MEBIBYTES of rows of 1,024 bytes, always the same, and says their SHA-256 on stderr."""
import hashlib
import sys

TAIL = "\t" + "underground" * 92 + "x\n"
ROWS = 1024

digest = hashlib.sha256()
for mebibyte in range(int(sys.argv[1])):
    rows = "".join(f"{mebibyte * ROWS + row:09d}{TAIL}" for row in range(ROWS)).encode()
    digest.update(rows)
    sys.stdout.buffer.write(rows)
print(digest.hexdigest(), file=sys.stderr)
