"""Text that may identify a person, in headers, sidecars and tables: the field is named, the value never repeated.

NIfTI headers have five text fields and extensions (a whole DICOM header fits in one); FreeSurfer appends the commands
that made a file. Converters copy names, dates and places into sidecars. Patterns find what looks like a name, a date,
an id; they cannot find everything, so that any other free text is noted.
"""

import itertools
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurotome.data.checking.finding import Finding
from neurotome.data.datasets.text_files import read_json, read_table
from neurotome.data.imaging.mgh import MAX_FOOTER_BYTES, mgh_layout
from neurotome.data.imaging.nifti import HEADERS, MAX_EXTENSION_BYTES
from neurotome.data.imaging.nifti_writer import SYNTHETIC_MARK
from neurotome.errors import InputError
from neurotome.files.verified import VerifiedStream

_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("an e-mail address", re.compile(r"(?<=[\w.+-])@[\w-]{1,64}\.\w")),
    ("a home folder", re.compile(r"/home/\w|/Users/\w|[A-Za-z]:\\Users\\\w")),
    ("a name", re.compile(r"[^\W\d_]\^[^\W\d_]|\b[A-Z][a-z]+, ?[A-Z][a-z]+")),
    (
        "a name or an id",
        re.compile(r"\b(?:(?:patient|subject)?[ _]?(?:name|id)|patient|born|dob|mrn|ssn|accession) ?[:=#] ?\w", re.I),
    ),
    ("a date", re.compile(r"(?<!\d)(?:19|20)\d\d([-/.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)")),
    ("a date", re.compile(r"(?<!\d)\d{1,2}(?:/\d{1,2}/(?:\d{4}|\d\d)|([-.])\d{1,2}\1(?:19|20)\d\d)(?!\d)")),
    ("a date", re.compile(rf"(?<!\d)\d{{1,2}}[- ]?(?:{_MONTHS})[a-z]*[-, ]{{0,2}}\d{{2,4}}(?!\d)", re.I)),
    ("a date", re.compile(rf"\b(?:{_MONTHS})[a-z]* \d{{1,2}},? (?:\d\d:\S+ )?(?:19|20)\d\d", re.I)),
    (
        "a time of day",
        re.compile(r"time ?[:=] ?\d{4}|(?<![\d:])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?![\d:])", re.I),
    ),
    ("an id", re.compile(r"(?<![\d.])\d{6,}(?![\d.])|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)")),
)
_CAPITALISED = re.compile(r"\b(?:[A-Z][a-zà-ÿ]+|[A-Z]{3,})\b")
# capitalised words that tools and protocols write; two others side by side look like a person
_KNOWN_WORDS = re.compile(
    r"free|surfer|freesurfer|spm|matlab|afni|ants|itk|fsl|nibabel|nilearn|simpleitk|nifti|analyze|brain|mask|head|image|"
    r"volume|labels?|maps?|atlas|template|mni|magnetic|resonance|siemens|philips|ge|healthcare|medical|systems|gr[ae]y|"
    r"white|matter|probability|segmentation|normali[sz]ed|realigned|resliced|contrast|smoothed|mprage|flair|space|tse|"
    r"bold|epi|dwi|swi|pd|iso|sag|tra|cor|ax|axial|sagittal|coronal|the|this|one|two|results?|raw|data|estimate|native|"
    r"bias|corrected|intensity|synthetic|neurotome|version|build|linear|affine|rigid|transform|from|field|warped|"
    r"registered|averaged?|standard|mean|scan|anatomical|time|series|study|session|subject|patient",
    re.IGNORECASE,
)
# tools that sign what they write, version and build date included, and words that say nothing
_SIGNATURES = re.compile(
    r"FreeSurfer(?: [A-Z][a-z]{2} \d{1,2} \d{4})?|"
    r"(?:FSL ?[\d.]+\w{0,8}|(?:FSL ?)?\d[\d.]+:[0-9a-f]{4,12})(?: +v[\d.]+ NIfTI-1 Single file format)?|"
    r"spm ?\d*(?: - (?:3D normalized|realigned|resliced|segmented|smoothed|algebra|converted))?|"
    r"(?:AFNI|ANTs|ITK|SimpleITK|MATLAB|nibabel|nilearn|neurotome)[\w.-]{0,12}|NIFTI-\d Image|"
    r"synthetic: neurotome(?: phantom)?|TE=[\d.]+|none|unknown",
    re.IGNORECASE,
)

# byte ranges of text in the two versions of the header
_TEXT_FIELDS = {
    1: {"data_type": (4, 14), "db_name": (14, 32), "descrip": (148, 228), "aux_file": (228, 252),
        "intent_name": (328, 344)},
    2: {"descrip": (240, 320), "aux_file": (320, 344), "intent_name": (508, 524)},
}  # fmt: skip
_DICOM_EXTENSION = 2
# more than a tool writes; the others are looked at together
_MAX_EXTENSIONS = 32
_SCRUB = "prepare and all outputs drop it; remove it before you share the file"

# keys without case and punctuation; a person, a place or a day
_DIRECT = re.compile(
    r"patient(?:s?name|id|birth\w*|address|comments|phone\w*|telephone\w*|insurance\w*)|otherpatient\w*|"
    r"(?:referring|performing|requesting)physician\w*|physician\w*|operator\w*|(?:issuerof)?accession\w*|"
    r"(?:acquisition|study|series|content|performedprocedurestepstart|instancecreation|scheduled\w*)date(?:time)?|"
    r"institution(?:al)?(?:name|address|departmentname)|(?:study|series|sopinstance|sop)?instanceuid|frameofreferenceuid|"
    r"studyid|requested\w*id|medicalrecord\w*|socialsecurity\w*|birthdate|dateofbirth|dob|"
    r"(?:first|last|family|given|middle|maiden)name|surname|fullname|initials|email|phone|telephone|address|street|zip|"
    r"zipcode|postcode|postalcode|mrn|ssn|nhsnumber|scandate|visitdate|dateofscan|examdate"
)
_INDIRECT = re.compile(
    r"(?:acquisition|study|series|content|performedprocedurestepstart|instancecreation)time|deviceserialnumber|"
    r"stationname|patient(?:age|weight|size|sex)|procedurestepid"
)
_PRIVATE_COLUMN = re.compile(r"name|" + _DIRECT.pattern)
# values that say nothing, and codes of sites
_PLACEHOLDER = re.compile(
    r"|n/?a|none|null|anon(?:ym(?:ous|i[sz]ed))?|unknown|removed|0+|x+|(?:site|cent(?:re|er)|institution)[ _-]?\w{1,3}",
    re.IGNORECASE,
)
# of free text in sidecars and tables only these count: times and numbers are what sidecars are for
_GRAVE = ("a name", "a date", "an e-mail address")
_MAX_DEPTH = 16
# above this age the common rules for health data count the age itself as identifying
MAX_AGE = 89


def looks_private(text: str, *, pairs: bool = True) -> str | None:
    """Return what a text looks like (``a date``, ``a name`` …), or None.

    Args:
        text: Any text.
        pairs: Whether two capitalised words side by side look like a person; model names of scanners do as well.
    """
    for kind, pattern in _PATTERNS:
        if pattern.search(text):
            return kind
    if not pairs:
        return None
    words = [(m.start(), m.end(), _KNOWN_WORDS.fullmatch(m.group()) is not None) for m in _CAPITALISED.finditer(text)]
    for (_, end, known), (start, _, also_known) in itertools.pairwise(words):
        if not known and not also_known and re.fullmatch(r"[\s_,]{1,2}", text[end:start]):
            return "a name"
    return None


def header_findings(path: Path, name: str) -> list[Finding]:
    """Return what a header's text fields, extensions or history hold; nothing where the header cannot be read."""
    try:
        if name.lower().endswith((".mgz", ".mgh")):
            return list(_mgh_history(path, name))
        return list(_nifti_text(path, name))
    except InputError:
        return []  # the reader reports why


def _nifti_text(path: Path, name: str) -> Iterator[Finding]:
    with VerifiedStream(path, compressed=name.lower().endswith(".gz")) as stream:
        start = stream.read(348)
        orders = {struct.unpack(f"{mark}i", start[:4])[0]: mark for mark in "<>"}
        version, size = (1, 348) if 348 in orders else (2, 540)
        if size not in orders:
            return
        start += stream.read(size - 348)
        if start[slice(*_TEXT_FIELDS[version]["descrip"])].rstrip(b"\0") == SYNTHETIC_MARK.encode():
            remedy = "keep it out of training, and out of tests on people"
            yield Finding("synthetic", name, "its header says that a model of neurotome made it", remedy)
        for field, (first, last) in _TEXT_FIELDS[version].items():
            yield from _text_finding(name, f"the header's {field}", start[first:last])
        offset = float(HEADERS[version](start, endianness=orders[size], check=False)["vox_offset"])
        if not size + 4 < offset <= size + 4 + MAX_EXTENSION_BYTES or stream.read(4)[0] == 0:
            return
        block = stream.read(int(offset) - size - 4)
    at, num_seen = 0, 0
    while at + 8 <= len(block) and num_seen < _MAX_EXTENSIONS:
        length, code = struct.unpack_from(f"{orders[size]}2i", block, at)
        if length < 8:
            return
        if code == _DICOM_EXTENSION:
            yield Finding("private-header", name, "a header extension holds a DICOM header", _SCRUB)
        else:
            yield from _text_finding(name, f"a header extension (code {code})", block[at + 8 : at + length])
        at, num_seen = at + length, num_seen + 1
    yield from _text_finding(name, "one of many more header extensions", block[at:])


def _mgh_history(path: Path, name: str) -> Iterator[Finding]:
    """Look at what follows the voxels: acquisition parameters and the commands that made the file."""
    with VerifiedStream(path, compressed=name.lower().endswith(".mgz")) as stream:
        layout = mgh_layout(stream)
        num_bytes = math.prod(layout.sizes) * layout.dtype.itemsize
        stream.check_promise(num_bytes)
        stream.skip(num_bytes)
        footer = stream.read_rest(MAX_FOOTER_BYTES)
    texts = re.findall(rb"[\x20-\x7e]{6,}", footer)
    yield from _text_finding(name, "the history after the voxels", b"\n".join(texts))


def _text_finding(name: str, where: str, content: bytes) -> Iterator[Finding]:
    # bytes behind the terminating zero are left over from earlier text; other programs may show them
    raw = content.replace(b"\0", b" ").strip()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if not any(c.isalnum() for c in text):
        return
    if _SIGNATURES.fullmatch(text.strip()):
        return
    kind = looks_private(text)
    if kind is not None:
        yield Finding("private-header", name, f"{where} holds what looks like {kind}", _SCRUB)
    elif len(text) > 3 and any(c.isalpha() for c in text):
        yield Finding("header-text", name, f"{where} holds {len(text)} characters of free text", "")


def sidecar_findings(path: Path, name: str) -> list[Finding]:
    """Return what the keys and values of a JSON sidecar say about a person.

    A sidecar that is no JSON object is a finding too: the dataset cannot be read with it.
    """
    try:
        value = read_json(path)
    except InputError as error:
        return [Finding("bids-sidecar", name, error.reason, error.remedy or "repair or remove the sidecar")]
    found = {}
    for key, item in _leaves(value):
        plain = re.sub(r"[^a-z]", "", key.lower())
        if isinstance(item, bool | None) or _PLACEHOLDER.fullmatch(str(item).strip()):
            continue
        if _DIRECT.fullmatch(plain):
            found[key] = ("private-sidecar", "")
        elif _INDIRECT.fullmatch(plain):
            found[key] = ("indirect-sidecar", "")
        elif isinstance(item, str) and "version" not in plain and (kind := looks_private(item, pairs=False)) in _GRAVE:
            found[key] = ("private-sidecar", f" (looks like {kind})")
    return [
        Finding(code, name, f"key {_shown(key)} is filled in{why}", "remove the key, or empty it")
        for key, (code, why) in found.items()
    ]


def _leaves(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        for name, item in value.items():
            yield from _leaves(item, str(name), depth + 1)
    elif isinstance(value, list) and depth < _MAX_DEPTH:
        for item in value:
            yield from _leaves(item, key, depth + 1)
    else:
        yield key, value


def _shown(key: str) -> str:
    """Return a key as it may be shown: one that itself looks private, or is no word, is not."""
    ordinary = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", key) and looks_private(key) is None
    return key if ordinary else "with an unusual name"


def table_findings(path: Path, name: str) -> list[Finding]:
    """Return the columns of a table that look private, by their name or by their cells; the cells are counted only."""
    try:
        header, rows = read_table(path)
    except InputError:
        return []  # where the table is needed, its reader reports why
    found = []
    for number, column in enumerate(header, start=1):
        cells = [row[column] for _, row in rows if not _PLACEHOLDER.fullmatch(row[column].strip())]
        plain = re.sub(r"[^a-z]", "", column.lower())
        where = f"column {number} ({_shown(column)})"
        kinds = [k for c in cells if (k := looks_private(c, pairs=False)) in _GRAVE]
        if cells and _PRIVATE_COLUMN.fullmatch(plain):
            found.append(Finding("private-column", name, f"{where} is filled in {len(cells)} rows", "remove it"))
        elif kinds and plain not in ("path", "mask", "label"):
            reason = f"{where}: {len(kinds)} cells hold what looks like {kinds[0]}"
            found.append(Finding("private-column", name, reason, "remove or recode the column"))
        elif plain == "age" and (old := sum(_is_old(c) for c in cells)):
            reason = f"{where}: {old} ages above {MAX_AGE}"
            found.append(Finding("private-column", name, reason, f"write {MAX_AGE}+ for all of them"))
    return found


def _is_old(cell: str) -> bool:
    try:
        return float(cell) > MAX_AGE
    except ValueError:
        return False
