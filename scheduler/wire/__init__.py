"""What crosses the wire: requests as strict models, answers as plain dicts, refusals as problem documents."""
