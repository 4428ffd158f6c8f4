"""SQL over an archive, which is plain Parquet under a Delta log: python examples/read_from_duckdb.py [ARCHIVE]

With no argument, the archive that archive_a_folder.py made.
"""

import sys

import duckdb

from compressor import Archive

QUERY = """
    select codec, count(*) as pictures, round(avg(psnr), 2) as psnr,
           sum(source_bytes) as bytes_in, sum(octet_length(payload)) as bytes_out
    from images group by codec order by pictures desc
"""


def main(url: str = "example-archive") -> None:
    # The log says which files are live; DuckDB reads just the columns that the query names.
    images = duckdb.read_parquet(Archive.open(url).files())
    print(images.query("images", QUERY))


if __name__ == "__main__":
    main(*sys.argv[1:2])
