"""What a text is without looking at its words' meaning: whose it is, its form, its language."""

import re
from typing import Literal

from policies import without_accents


def fold(text: str) -> str:
    """Return `text` in lower case, without accents, with single spaces."""
    return " ".join(without_accents(text.lower()).replace("’", "'").split())


# The commonest words of the languages we tell apart, and of those that are easily taken for them.
# English has none that is also a keyword of many programming languages.
_COMMON_WORDS = {
    "en": """the a an of to what how are was were do does did can could would should will my your
        am you me we they it its he she his her that these those which who where when why there with
        about and or please write explain tell give make show help hi hello hey thanks thank need
        want have has be been at by on but so some any not than then into find list calculate good
        yes describe""",
    "es": """el la los las un una unos unas de del al y o que qué cómo como cuál cual cuáles cuándo
        cuando dónde donde quién quien por para con sin es son está están era fue ser hay mi mis tu
        tus su sus me te se lo le les nos yo ella ellos esto esta este ese esa eso más mas pero
        porque si sí muy también puedo puedes quiero necesito haz hazme dame dime escribe explica
        crea hola gracias buenos buenas días favor en cuanto cuánto cuántos cuántas hacer tengo
        tiene ahora""",
    "pt": """o os as um uma do da dos das no na em não você qual quais é são e com por para que como
        mais isso meu minha seu sua olá obrigado ao à""",
    "fr": """le la les un une des de du et est que qui dans pour sur avec je tu vous nous il elle ce
        cette mon ma ne pas au aux bonjour merci quel quelle comment son sa ses en à""",
    "de": """der die das und ist ein eine nicht wie ich du sie er es mit von zu den dem des im auf
        für was wer wo hallo danke bitte""",
    "it": """il lo la gli le un una di che è e per con non sono come ciao grazie quale cosa mi si
        del della nel nella da al""",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _code, _words in _COMMON_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_code)

# No names of files or functions, and no arguments: those are not words of a language.
_WORD = re.compile(r"(?<![\w.$@/(])[^\W\d_]+(?![\w(=\[)]|[./]\w)")
_SPANISH_SIGNS = re.compile(r"[¿¡ñ]")
_SPANISH_VOWELS = re.compile(r"[áéíóú]")
_SHARE_MIN = 0.12  # of the words that must be common ones; in prose it is a third and more
_LANGUAGE_CHARS = 2_000


def language(text: str) -> Literal["en", "es"] | None:
    """Return the language of `text`; None for code, other languages and unclear cases."""
    text = text[:_LANGUAGE_CHARS].lower()
    words = _WORD.findall(text)
    hits = dict.fromkeys(_COMMON_WORDS, 0)
    for word in words:
        for code in _LANGUAGES_OF.get(word, ()):
            hits[code] += 1
    hits["es"] += 2 * bool(_SPANISH_SIGNS.search(text)) + bool(_SPANISH_VOWELS.search(text))
    english, spanish = hits.pop("en"), hits.pop("es")
    best = max(english, spanish)
    if english == spanish or best < max(1, *hits.values(), _SHARE_MIN * len(words)):
        return None
    return "en" if best == english else "es"


# What programs wrap into tags. Names with an underscore belong to no language that people paste,
# so they need not be listed; those that end like a request have the person's own words in them.
_MATERIAL = re.compile(
    r"(?:system-reminder|context|documents?|files?|attachments?|passage|transcript|history|"
    r"memory|memories|metadata|workspace|selection|sources|excerpt|references?|results|rules|"
    r"conversation|thinking|environment|contexto|documentos?|archivos?|ficheros?|reglas|historial|"
    r"recordatorio|herramientas|sistema|[^\W\d_]+[_-][\w-]*)"
)
_ASKED = re.compile(
    r"(?:[\w-]*[_-])?(?:user|query|request|task|question|message|input|prompt|goal|voice|"
    r"usuario|consulta|peticion|tarea|pregunta|mensaje|objetivo|orden|voz)(?:[_-]usuario)?"
)
_TAG = re.compile(r"<([A-Za-z][\w-]{0,40})(?:\s[^<>\n]{0,300})?>")
_EDGE_CHARS = 64_000  # what is read of the beginning and of the end of a text


def own_words(text: str) -> str:
    """Return what a person asks in `text`, without what programs wrap around it.

    Coding agents, chat apps and retrieval put files, search results and reminders into tags
    (`<environment_details>`, `<context>`), and sometimes the person's own words, too
    (`<user_query>`). Where nothing but such material is there, the text is returned as it is.
    """
    if "</" not in text:
        return text
    if len(text) > 2 * _EDGE_CHARS:
        text = f"{text[:_EDGE_CHARS]}\n{text[-_EDGE_CHARS:]}"
    kept, unclosed = [], set()
    after = 0  # the end of the last block
    for tag in _TAG.finditer(text):
        name = tag[1].lower()
        if tag.start() < after or name in unclosed:
            continue
        asked = _ASKED.fullmatch(name)
        if not asked and not _MATERIAL.fullmatch(name):
            continue
        end = text.find(f"</{tag[1]}>", tag.end())
        if end < 0:
            unclosed.add(name)  # looked for once only, so that the time stays linear
            continue
        kept.append(text[after : tag.start()])
        if asked:
            kept.append(text[tag.end() : end])
        after = end + len(tag[1]) + 3
    words = "".join([*kept, text[after:]]).strip()
    return words if any(map(str.isalnum, words)) else text


Output = Literal["code", "json", "table", "essay", "text"]

_JSON = re.compile(
    r"\b(?:as|in|into|to|return|valid|only|output|en|como|formato|devuelve\w*|solo|un|una)"
    r" (?:\w+ ){0,2}json\b|\bjson (?:object|array|format|output|list|schema|valido|con|with)\b"
)
_TABLE = re.compile(
    r"\b(?:in|as|into|en|como|con|with|make|create|draw|build|give me|hazme|haz|crea|creame|genera|"
    r"dame|arma) (?:an? |una? |el |the |formato )?(?:\w+ )?(?:table|tabla|csv|tsv|spreadsheet)\b|"
    r"\b(?:table|tabla) (?:with|con) (?:columns|columnas|the columns|las columnas)\b"
)
_ESSAY = re.compile(
    r"\b(?:essay|article|blog ?post|report|speech|story|chapter|whitepaper|newsletter|ensayo|"
    r"articulo|entrada de blog|informe|reporte|discurso|cuento|relato|historia|capitulo|redaccion)"
    r"\b|\b\d{3,5}[ -](?:words?|palabras)\b"
)


def requested_output(text: str, task: str) -> Output:
    """Return the form of the answer that `text`, a request for `task`, asks for.

    Parameters
    ----------
    text
        A short text; the time is linear in its length.
    """
    if task == "code":
        return "code"
    words = fold(text)
    if _JSON.search(words):
        return "json"
    if _TABLE.search(words):
        return "table"
    return "essay" if task == "writing" and _ESSAY.search(words) else "text"
