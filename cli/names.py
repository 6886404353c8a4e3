"""Which words name a job file. Apart from its reader, which no other command should have to load."""

JOB_FILE_SUFFIXES = (".yaml", ".yml", ".json")


def is_job_file(word: str) -> bool:
    """True for the name of a job file, whether it is there or not."""
    return word.lower().endswith(JOB_FILE_SUFFIXES)
