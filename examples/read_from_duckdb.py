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
    archive = Archive.open(url)
    if not len(archive):
        sys.exit(f"{url} holds no picture yet")
    # The log says which files are live; DuckDB reads just the columns that the query names, here payloads too.
    images = duckdb.read_parquet(archive.files())
    print(images.query("images", QUERY))
    for pixels in archive.decode(images.order("psnr").limit(3)):
        print("pixels of one of the worst:", pixels.shape, pixels.dtype)


if __name__ == "__main__":
    main(*sys.argv[1:2])
