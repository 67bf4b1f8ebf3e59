"""Validates a crate without a network; runs in the environment that holds roc-validator.

python validate_crate.py CRATE SEVERITY: one line for each thing that fails, then the sums. The one
page that the validator fetches, the context of RO-Crate 1.1, comes from rocrate's copy of it.
"""

import importlib.resources
import sys
import tempfile
from pathlib import Path

import requests
from requests_cache import CachedResponse, CachedSession
from rocrate_validator import services
from rocrate_validator.models import Severity, ValidationSettings

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


def remember(cache: Path, url: str, text: bytes) -> None:
    """Have a cache hold a page."""
    with CachedSession(str(cache), backend="sqlite", expire_after=-1) as session:
        request = requests.Request("GET", url).prepare()
        headers = requests.structures.CaseInsensitiveDict({"Content-Type": "application/ld+json"})
        page = CachedResponse(url=url, status_code=200, headers=headers, content=text)
        session.cache.save_response(page, session.cache.create_key(request))


def main(crate: Path, severity: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "http")
        text = importlib.resources.files("rocrate").joinpath("data/ro-crate.jsonld").read_bytes()
        remember(cache, CONTEXT, text)
        result = services.validate(
            ValidationSettings(
                rocrate_uri=str(crate),
                profile_identifier="provenance-run-crate",
                requirement_severity=Severity[severity],
                cache_path=cache,
                offline=True,
            )
        )
    issues = result.get_issues()
    for issue in issues:
        what = f"{issue.severity.name} {issue.check.identifier}: {issue.message}"
        print(f"{what} ({issue.violatingEntity})")
    print(f"{len(result.executed_checks)} checks, {len(issues)} issues")
    return len(issues)


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), sys.argv[2]), 1))
