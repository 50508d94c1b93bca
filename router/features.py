"""The plain form of a text, and the language it is in."""

import re
import unicodedata
from typing import Literal

_MARKS = re.compile("[\u0300-\u036f]+")


def fold(text: str) -> str:
    """Return `text` in lower case, without accents, with single spaces."""
    text = text.lower()
    if not text.isascii():
        text = _MARKS.sub("", unicodedata.normalize("NFKD", text)).replace("’", "'")
    return " ".join(text.split())


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
