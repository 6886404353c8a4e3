"""Turns public workload traces into the files that `turnstile admin simulate` reads.

    python -m benchmarks.traces philly TRACE.csv.gz OUT_DIR [--nodes 160] [--first 5000]

writes OUT_DIR/cluster.toml and OUT_DIR/jobs.csv. Philly (Jeon et al., USENIX ATC 2019) counts GPUs only: a job of up to
8 goes on one node, a larger one over the fewest nodes of equal parts. Its limits are the column `estimate_s`.
"""

import argparse
import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

GPUS_PER_NODE = 8


def gang(gpus: int, most_per_node: int = GPUS_PER_NODE) -> tuple[int, int]:
    """Returns (nodes, GPUs per node) for a total: the fewest nodes over which it divides evenly."""
    per_node = next(count for count in range(min(gpus, most_per_node), 0, -1) if gpus % count == 0)
    return gpus // per_node, per_node


def cluster(nodes: int, gpus: int = GPUS_PER_NODE, gpu_class: str = "P40") -> str:
    """Returns a cluster file of equal nodes."""
    return (
        f'[[nodes]]\ncount = {nodes}\nname = "node"\ngpu_class = "{gpu_class}"\ngpus = {gpus}\n'
        f"cpus = {gpus * 6}\nmemory_gib = {gpus * 64}\n"
    )


def philly(path: Path, first: int | None) -> Iterator[dict[str, object]]:
    """Yields the jobs of the Philly file in order of submission."""
    with gzip.open(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if first is not None and number >= first:
                return
            nodes, gpus = gang(int(row["gpus"]))
            yield {
                "job_id": row["job_id"],
                "submit_seconds": row["submit_s"],
                "tenant": row["tenant"],
                "nodes": nodes,
                "gpus": gpus,
                "time_limit_seconds": row["estimate_s"],
                "duration_seconds": row["duration_s"],
            }


def write(rows: Iterator[dict[str, object]], cluster_text: str, out: Path) -> int:
    """Writes both files; returns how many jobs there are."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "cluster.toml").write_text(cluster_text, encoding="utf-8")
    count = 0
    with (out / "jobs.csv").open("w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            count += 1
    return count


def main() -> None:
    """Converts one trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["philly"])
    parser.add_argument("trace", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--nodes", type=int, default=160)
    parser.add_argument("--first", type=int, help="only so many jobs")
    given = parser.parse_args()
    jobs = write(philly(given.trace, given.first), cluster(given.nodes), given.out)
    print(f"{given.out}: {jobs} jobs on {given.nodes} nodes of {GPUS_PER_NODE} GPUs")


if __name__ == "__main__":
    main()
