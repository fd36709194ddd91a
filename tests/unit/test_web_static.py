"""The files of the page: small, whole, unchanged since they were vendored, and nothing in them leaves the origin."""

from __future__ import annotations

import hashlib
import json
import os
import re

from greenroom.webui.app import STATIC_DIR

VENDOR = os.path.join(STATIC_DIR, "vendor")


def read(*parts: str) -> str:
    with open(os.path.join(STATIC_DIR, *parts), encoding="utf-8") as file:
        return file.read()


def sources() -> dict[str, str]:
    """Name -> text of every script and style sheet, ours and vendored."""
    return {os.path.relpath(os.path.join(folder, name), STATIC_DIR): read(os.path.relpath(os.path.join(folder, name), STATIC_DIR))
            for folder, _, names in os.walk(STATIC_DIR) for name in names if name.endswith((".js", ".css"))}


def test_scripts_and_styles_weigh_at_most_150_kb() -> None:
    assert sum(len(text.encode()) for text in sources().values()) <= 150_000


def test_vendored_files_are_those_of_the_manifest() -> None:
    manifest = json.loads(read("vendor", "manifest.json"))["files"]

    assert {entry["file"] for entry in manifest} == {name for name in os.listdir(VENDOR) if name.endswith(".js")}
    for entry in manifest:
        assert hashlib.sha256(read("vendor", entry["file"]).encode()).hexdigest() == entry["sha256"], entry["file"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
        assert len(read("vendor", entry["license_file"])) > 500


def test_every_import_is_a_file_beside_it() -> None:
    for name, text in sources().items():
        for target in re.findall(r"""(?:from|import)\s*["']([^"']+)["']""", text):
            assert target.startswith("."), f"{name} imports {target}"
            assert os.path.exists(os.path.normpath(os.path.join(STATIC_DIR, os.path.dirname(name), target))), f"{name} imports {target}"


def test_what_is_imported_from_our_files_is_exported_there() -> None:
    exported = {name: set(re.findall(r"^export (?:async )?(?:const|let|function) (\w+)", text, re.M)) for name, text in sources().items()}
    for name, text in sources().items():
        for names, target in re.findall(r"""^import \{([^}]*)\} from "\./(\w+\.js)";""", text, re.M):
            wanted = {word.strip() for word in names.split(",")}
            assert wanted <= exported[f"js/{target}"], f"{name}: {wanted - exported[f'js/{target}']} of {target}"
            assert all(len(re.findall(rf"\b{word}\b", text)) > 1 for word in wanted), f"{name} imports from {target} what it does not use"


def test_nothing_in_the_page_names_another_origin() -> None:
    for name, text in {**sources(), "index.html": read("index.html")}.items():
        urls = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+[^\s\"'`)]*", text))
        assert not {url for url in urls if not url.startswith("http://www.w3.org/")}, name


def test_our_scripts_have_no_way_to_turn_text_into_markup() -> None:
    for name, text in sources().items():
        if not name.startswith("vendor"):
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(", text), name
