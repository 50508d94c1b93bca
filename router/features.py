"""Evidence in a text: whether it is about code, and the language it is in.

Every piece of evidence has a name, which tells a person what was seen, and a weight.
The weights of all that is found are added up; from `THRESHOLD` on, the text is about code.
The weights were set by hand: 1 is enough alone, 0.5 needs as much again from elsewhere.
"""

import re
import unicodedata
from typing import Literal, NamedTuple

THRESHOLD = 1.0
"""Sum of weights from which a text is about code."""

_SAMPLE_CHARS = 2_000  # of the head, the middle and the tail of a long text, to look for syntax
_INSTRUCTION_CHARS = 500  # of its tail, and twice that of its head, to look for a request
_SHORT_CHARS = 600  # in a longer text, words that say little alone are there by chance


class _Clue(NamedTuple):
    name: str
    weight: float
    pattern: re.Pattern[str]


def _pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern that is written over several lines; line ends and indents do not count."""
    return re.compile("".join(line.strip() for line in text.splitlines()))


def _clues(*table: tuple[str, float, str]) -> tuple[_Clue, ...]:
    return tuple(_Clue(name, weight, _pattern(text)) for name, weight, text in table)


# All patterns take time that is linear in the text: every gap has an upper bound, and no repeated
# group can match the same text in two ways.

# What a text looks like; matched as it was written, after a newline. A literal "\n" instead of an
# anchor makes the search several times faster.
_SYNTAX = _clues(
    (
        "fenced block",
        1.0,
        r"```[ \t]*(?!te?xt\b|markdown\b|md\b|plain)[a-zA-Z][\w+#.-]{0,20}[ \t]*\n",
    ),
    ("fence", 0.5, r"\n```[ \t]*\n"),
    (
        "stack trace",
        1.0,
        r"""Traceback \(most recent|\n[ \t]+at [\w.$<>]{2,80}[ (]|File "[^"\n]{1,200}", line \d|
        \b[A-Z][a-z]\w{1,40}(?:Error|Exception)\b|Segmentation fault|\bpanic: |core dumped""",
    ),
    ("diff", 1.0, r"\ndiff --git |\n@@ -\d|\n--- a/"),
    (
        "python syntax",
        1.0,
        r"""\n[ \t]*(?:def \w{1,60} ?\(|class \w{1,60}(?:\([\w., ]{0,60}\))?:[ \t]*\n|
        from [\w.]{1,60} import \w|import \w{1,40}(?: as \w|\.\w|, \w)|
        import (?:os|sys|re|json|math|time|random|numpy|pandas|requests)\b|if __name__|
        elif .{1,80}:|>>> |@\w{1,40}\n|for \w{1,30} in [^\n]{1,60}:[ \t]*\n|try:\n)|
        \bprint\(|\brange\(|\blen\(\w|\bself\.\w|\blambda \w{1,20}:""",
    ),
    (
        "javascript syntax",
        1.0,
        r"""\b(?:const|let|var) [\w{}\[\], ]{1,40} = |\bfunction \w{0,40}\([^()\n]{0,80}\) ?\{|
        \) ?=> ?[{(\w]|console\.log|\bdocument\.\w+\(|\brequire\(['"]|===|
        \bexport (?:default|const|function)|\n[ \t]*import [^\n;]{1,80} from ['"]|
        \binterface \w{1,40} \{ ?\n""",
    ),
    (
        "c, c# or java syntax",
        1.0,
        r"""\b(?:public|private|protected) (?:static |final |async |override )?
        (?:class|void|int|string|String|bool|boolean|record|interface|\w{2,30} \w{2,40}\()|
        System\.out|\nusing [A-Z]\w+[.;]|\nimport (?:java|org|com)\.|\nnamespace \w|
        #include ?[<"]|\bint main\b|\bstd::|\b(?:printf|scanf|malloc|sizeof)\(|Console\.Write|
        \b(?:int|char|float|double|bool|void|long|string) \*?\w{1,30}
        (?: = [^\n;]{1,60};|;|\[\w{0,10}\]|\([^\n()]{0,60}\) ?\{)|@Override""",
    ),
    (
        "go or rust syntax",
        1.0,
        r"""\npackage \w{1,30}\n|\bfunc (?:\([^()\n]{1,40}\) )?\w{1,40}\(|\bfmt\.\w|
        \bfn \w{1,40} ?[(<]|\blet mut \w|println!|\bimpl \w|\w := \w|\berr != nil""",
    ),
    (
        "ruby, perl or php syntax",
        1.0,
        r"""<\?php|\$\w{1,30} ?= ?[^=\n]|\becho \$|->\w{1,40}\(|\n[ \t]*def \w{1,40}\n|
        \.each do \||\nputs |\nrequire ['"]|\bmy [$@%]\w|\nsub \w{1,40} ?\{""",
    ),
    (
        "kotlin, swift, scala or r syntax",
        1.0,
        r"""\bfun \w{1,40}\(|\bval \w{1,30} ?[=:]|\blet \w{1,30}: ?[A-Z]|\bguard let|
        \nimport (?:Foundation|UIKit|SwiftUI)|\bobject \w{1,40} (?:extends|\{)|
        \w <- \w{1,30}\(|\blibrary\(\w|%>%""",
    ),
    (
        "sql syntax",
        1.0,
        r"""\bSELECT (?:DISTINCT )?(?:[a-z*`"]|\w{1,20}\()|
        \b(?i:select [\w*,. ()]{1,120} from \w{1,60} ?(?:where|join|order by|group by|limit|;)|
        insert into \w{1,60} ?(?:\(|values)|(?:create|alter|drop) table \w|
        update \w{1,60} set \w{1,60} ?=|delete from \w{1,60}(?: where|;))|
        \b(?:INNER|LEFT|OUTER) JOIN\b|\b(?:GROUP|ORDER) BY\b""",
    ),
    (
        "html or css syntax",
        1.0,
        r"""</?(?:html|head|body|div|span|script|style|table|t[rdh]|ul|li|img|input|form|button|
        nav|section|h[1-6]|a href|p|br|!DOCTYPE)\b[^<>\n]{0,200}>|
        [\w)*] ?\{\s{0,20}[a-z-]{2,30} ?: ?[^{};\n]{1,60};""",
    ),
    (
        "shell syntax",
        1.0,
        r"""#!/|\n[$%] (?:\./)?[a-z]{2,12}\b|\nPS [A-Z]:|\w --\w[\w-]{2,}|\$\{?[A-Z_]{2,30}\}?|
        \b(?:ls|ps|cd|cp|mv|rm|du|df|tar|grep|awk|sed|find|chmod|chown|mkdir|ssh|curl) -[a-zA-Z]|
        \n(?:\$ )?(?:sudo|apt(?:-get)?|npm|npx|pip3?|git|docker|kubectl|curl|wget|chmod|grep|awk|
        sed|ssh|cargo|brew) [-\w./]|\| ?(?:grep|awk|sed|xargs|sort|head|wc)\b|
        \b(?:Get|Set|New|Remove|Invoke|Write|Start|Stop|Where|ForEach)-(?:Object|ChildItem|
        Content|Process|Service|Item|Host|Output|Command|WebRequest)\b""",
    ),
    (
        "yaml or dockerfile syntax",
        1.0,
        r"""\nFROM [\w./-]+:[\w.]|\nFROM \w+\nRUN |\nRUN [a-z]|\nENTRYPOINT |\napiVersion: |
        \n(?:services|jobs|steps):[ \t]*\n""",
    ),
    ("json", 0.4, r"""\{\s{0,20}"\w{1,40}"\s{0,4}:"""),
    (
        "code punctuation",
        0.5,
        r"""\b(?:if|while|for|switch) ?\([^()\n]{1,80}\) ?\{|\breturn [^\n;.]{1,40};|
        [;{][ \t]*\n[ \t]*[\w}]|\n[ \t]*\};?\n|\w\(\)|\w\[(?:\w|\d+|-1)?\]|\w\.\w{2,30}\(|
        [^=]==[^=]|!=|&&|\|\||\+=|\w\+\+|/\*\*|\n[ \t]*// |;\n""",
    ),
    (
        "identifier",
        0.8,
        r"""\b[a-z]{2,20}_[a-z_]{2,40}\b|\b[a-z]{3,20}[A-Z][a-z]{2,20}|`[^`\n]{1,60}`""",
    ),
    ("literal", 0.3, r"""\[(?:\d{1,9}|['"]\w{1,20}['"]), ?|\w\(\[|\w\(['"]"""),
    (
        "path or glob",
        0.8,
        r"""(?<![\w/.])/(?:usr|home|etc|var|tmp|bin|dev|path|opt|root|proc)\b|(?<!\w)\*\.\w{1,5}\b|
        (?<!\w)\.{1,2}/\w|(?<!\w)~/\w|\b[CD]:\\\w""",
    ),
)

# Words that mean something else together; blanked before the words below are looked for.
_IDIOMS = _pattern(
    r"""https?://\S+|
    \b(?:zip|area|postal|penal|dress|bar|qr|morse|promo|discount|coupon|tax|country|pin|building|
    color|genetic|moral|honor|cheat|access|airport|dialing) codes?\b|
    \bcodes? (?:of (?:conduct|ethics|honou?r|silence|hammurabi)|names?|words?|red|blue)\b|
    \bcodigos? (?:postal\w*|penal\w*|civil\w*|qr|morse|genetico|promocional\w*|da vinci|laboral|
    de (?:barras|conducta|vestimenta|etica|descuento|circulacion|honor|verificacion|comercio|
    hammurabi|area|colores|seguridad|trabajo|familia))\b|
    \bclass(?:es)? of \d+|\b(?:first|second|middle|working|upper|business|economy) class\b|
    \bclase (?:media|obrera|social|alta|baja|turista|de (?:yoga|historia|ingles|baile|biologia|
    matematicas|musica))\b|
    \b(?:movie|film|interview|podcast|theat(?:er|re)|tv|video|sales|call|radio|play) scripts?\b|
    \b(?:tv|training|exercise|workout|loyalty|school|space|graduate|fitness|radio|television|
    government|music|degree) programs?\b|
    \bprogramas? (?:electoral\w*|social\w*|espacial\w*|politico\w*|de (?:television|radio|tv|
    ejercicios?|estudios?|gobierno|fidelidad|doctorado|entrenamiento))\b|
    \bfunction (?:of (?:the|an?) \w+|whose \w+)|\b(?:public|social) functions?\b|
    \bfuncion(?:es)? (?:cuy[ao]s?|public\w+|social\w*|vital\w*|de (?:teatro|cine|las?|los)|del) \w+|
    \b(?:import|export) (?:tax|dut|tariff|business|compan|restriction|goods)\w*|
    \b(?:return|refund) (?:polic|flight|ticket|trip)\w*|\bmonty python\b|
    \bpythons? (?:snakes?|bites?|skin|eggs?)\b|\bvitamins? c\b|\bc (?:major|minor|sharp)\b|
    \b(?:string|shoe) (?:quartet|theory|beans?|instruments?|orchestra)\b|
    \bfamily tree\b|\b(?:bed|june|stomach|flu|love) bugs?\b"""
)

# Nobody means anything else by these.
_LANGUAGE = r"""(?:python3?|javascript|js|typescript|golang|kotlin|php|perl|matlab|haskell|fortran|
    cobol|c\+\+|cpp|c#|\.net|html5?|css3?|(?:my|t-|pl/|no)?sql|postgres(?:ql)?|sqlite|mongodb|bash|
    powershell|node(?:\.?js)|vue(?:\.?js)|react(?:\.?js)|next\.?js|jquery|django|fastapi|laravel|
    numpy|scipy|docker|kubernetes|pytorch|tensorflow|matplotlib|scikit-learn|opencv|
    pytest|vba|arduino)(?![\w+#])"""
# These are words too, or islands.
_LANGUAGE_OR_WORD = r"""(?:go|c|r|swift|rust|java|ruby|scala|julia|dart|lua|elixir|react|spring|
    angular|vue|node|flask|pandas|excel|linux|unity|solidity|terraform)(?![\w+#'-])"""
_MAKE = r"""\b(?:write|create|implement|make|build|generate|develop|complete|code|define|need|want|
    give|show|provide|escrib[aei]\w*|cre(?:a\w{0,3}|e)|implement[ae]\w*|haz(?:me)?|hacer|
    gener[ae]\w*|desarroll[ae]\w*|program[ae]|dame|necesito|quiero|complet[ae]|defin[ae]|disen[ae]|
    construy[ae])(?: me| us)?
    (?: an?| the| this| some| my| una?| la| el| esta| este)?[ ]
    (?:(?!(?:about|on|of|for|to|that|sobre|acerca|de|que|para)\b)\S{1,25} ){0,2}"""
_REPAIR = r"""\b(?:fix|debug|refactor|optimi[sz]e|improve|review|explain|rewrite|translate|convert|
    port|run|test|check|understand|arregl[ae]\w*|corrig[ea]\w*|depur[ae]\w*|optimi[zc][ae]\w*|
    explic\w{1,5}|revis[ae]\w*|mejor[ae]\w*|comenta|documenta|traduc[ei]\w*|conviert[ae]\w*|prueba|
    ejecuta)(?: \w{1,12}){0,2}[ ]"""
# A list of other things is a list of guests.
_LIST = r"""(?:lists?(?! of (?!strings|numbers|integers|lists|dict|tuples|ints|floats|elements))|
    listas?(?! de (?!cadenas|numeros|enteros|listas|dicc|tuplas|elementos)))"""
_DATA = r"""(?:strings?|arrays?|substrings?|tuples?|integers?|booleans?|csv|json|xml|
    dict(?:s|ionary|ionaries)?|hash ?maps?|matrix|matriz|data ?frames?|columns?|columnas?|
    vector(?:e?s)?|timestamps?|arreglos?|
    tuplas?|subcadenas?|cadenas?(?! de (?!texto|caracteres))|enteros?|diccionarios?)"""

# Words of programming that are also others; two different ones weigh more than one.
_WORDS = _pattern(
    r"""\b(?:code|codigo|algorithm|algoritmo|bug|function|funcion|variable|programming|programacion|
    programador|programmer|software|back-?end|front-?end|endpoint|git|github|api|database|schema|
    base de datos|bucle|loop|byte|thread|recursiv\w+|recursion|exception|excepcion|server|servidor|
    terminal|command line|linea de comandos|argument|argumento|debug\w*|
    depur(?:a|ar|ame|o)|compil(?:er|ing|ador|ar)|pointer|puntero|closure|callback|decorator|
    decorador|generics|ownership|inheritance|herencia|struct|async|plugin|ssh|ip address|md5|
    file ?system|checksum|constructor|iterator|namespace|repository|repositorio|commit|deploy\w*|
    runtime|boolean|json|csv|xml|migrations?|migracion|lambda|keyword)(?=e?s?\b)"""
)

# What a text asks for; matched in lower case, without accents, with single spaces.
_REQUESTS = _clues(
    (
        "asks for a function",
        1.0,
        _MAKE
        + r"""(?:functions?|funcion(?:es)?|methods?|metodos?|regex\w*|quer(?:y|ies)|consulta sql|
        unit tests?|tests? unitarios?|endpoints?|subroutine|snippets?|
        decorator|decorador|stored procedure|lambda|migration|middleware|cron \w+|
        parser|scraper|one-liner|bucle|for loop|while loop|
        api|compiler|crud|(?:react|vue|angular) component)\b|
        \bwrite (?:me )?a program\b|\bun script\b""",
    ),
    (
        "asks for a program",
        0.6,
        _MAKE
        + r"""(?:programs?|programa|algorithms?|algoritmos?|scripts?|class|clase|apps?|aplicacion|
        macro|codigo|code|bot|
        chatbot|components?|componente|web ?(?:site|app|page)|pagina web)\b""",
    ),
    (
        "what a program does",
        0.3,
        r"""\b(?:program|script|class|code|macro|app) (?:that|which|to)\b|
        \b(?:programa|script|clase|codigo|macro|app) (?:que|para)\b""",
    ),
    (
        "about existing code",
        1.0,
        _REPAIR
        + r"""(?:code|codigo|functions?|funcion|scripts?|bugs?|methods?|metodo|quer(?:y|ies)|
        snippet|bucle|loop|algorithm|algoritmo|regex|unit tests?)\b(?! of\b)|"""
        + _REPAIR
        + r"(?:this|est[ae])(?: \w{1,12})? "
        + _LANGUAGE,
    ),
    (
        "specification of a function",
        0.6,
        r"""\bfunctions? (?:that|which|should|must|to|takes?|returns?|called|named|accepts?|
        receives)\b|
        \bfuncion (?:que|debe|deberia|para|toma|recibe|acepta|devuelve|retorna|llamada|en)\b""",
    ),
    (
        "returns a value",
        0.7,
        r"""\b(?:returns?|devuelv[ae]|devolver|retorn[ae]r?|imprim[ae]|imprimir)\b
        (?: \w{1,20}){0,5}[ ]
        (?:true|false|none|null|verdadero|falso|nulo|number|index|value|numeros?|valor|indice|
        elementos?|suma|mediana|promedio|maximo|minimo|"""
        + _LIST
        + "|"
        + _DATA
        + r""")\b|\b(?:returns?|devuelve|retorna) -?\d\b""",
    ),
    ("starts with return", 0.4, r"^(?:returns?|devuelv[ae]|devolver|retorn[ae]r?|imprime)\b"),
    (
        "given data",
        0.6,
        r"""\b(?:se (?:te|le) (?:da|dan|dara|proporciona)|dad[oa]s?|te dan|recib\w{1,6}|given|
        toma como entrada|takes?|para|de)(?: \w{1,12}){1,4} (?:"""
        + _LIST
        + "|"
        + _DATA
        + r""")\b(?! dice| says)|\b(?:cadena|lista|matriz|numero|entero)s? dad[oa]s?\b""",
    ),
    (
        "operation on data",
        0.6,
        r"""\b(?:reverse|sort|iterate|loop|traverse|concatenate|split|parse|filter|merge|flatten|
        append|separ\w{1,3}|invert\w{1,3}|inviert[ae]\w*|orden[aeo]r?|recorr\w{1,4}|itera\w*|
        concaten\w*|filtr\w*|parse\w*|convert\w*|conviert[aeo]\w*)(?: \w{1,12}){0,4} (?:"""
        + _LIST
        + "|"
        + _DATA
        + r")\b",
    ),
    ("data structure", 0.4, r"\b" + _DATA + r"\b"),
    ("list", 0.2, r"\b" + _LIST + r"\b"),
    ("programming language", 0.8, r"(?<![\w.])" + _LANGUAGE),
    (
        "in a programming language",
        0.4,
        r"\b(?:in|en|using|usando|with|con|to|into) " + _LANGUAGE,
    ),
    (
        "short, and a programming language",
        0.2,
        r"^.{0,50}(?<![\w.])" + _LANGUAGE + r".{0,40}$",
    ),
    ("perhaps a language", 0.6, r"\b(?:in|en|using|usando|with|con|de) " + _LANGUAGE_OR_WORD),
    (
        "how, why or what",
        0.2,
        r"""\bhow (?:do|can|would|should|to)\b|\bcomo (?:se|\w{2,12}o|\w{3,9}r|\w{5,10}ias)\b|
        \bwhat(?:'s| is| are| does)\b|\bdifference between\b|\bdiferencia entre\b|\bwhy\b|
        \bpor que\b|\bque (?:es|hace|son)\b|\bpara que sirve|\bno entiendo\b|\bexplica\w*\b|
        \bexplain\b|\bexamples?\b|\bejemplo\b""",
    ),
    (
        "programming term",
        1.0,
        r"""\b(?:regex(?:es|p)?|regular expressions?|expresion(?:es)? regular(?:es)?|
        git (?:commit|push|pull|rebase|merge|checkout|clone|stash|reset|status|log|diff|branch)|
        pull requests?|merge conflicts?|dockerfile|docker-compose|kubectl|npm|pip install|webpack|
        localhost|stdout|stderr|stdin|unit test(?:s|ing)?|(?:pruebas?|tests?) unitari[ao]s?|
        rest api|api rest|graphql|data ?frames?|null ?pointer|foreign key|primary key|flexbox|
        (?:inner|left|outer) join|use(?:effect|state)|react (?:components?|hooks?|native|app)|
        linked lists?|listas? enlazadas?|hash ?(?:map|table)s?|binary (?:search|trees?)|
        busqueda binaria|arbol(?:es)? binarios?|(?:merge|bubble|quick|heap|insertion) ?sort|
        dijkstra|big-?o|time complexity|dynamic programming|programacion dinamica|leetcode|
        fizzbuzz|codebase|divs?|segfault|garbage collect\w+|source code|codigo fuente|refactor\w*|
        (?:for|while) loops?|bucle (?:for|while)|stack ?trace|type ?hints?|goroutines?|
        borrow checker|scraping|beautifulsoup|selenium|cors|cron(?:tab|job)?|vim|middleware|
        websockets?|oauth|jwt|crud|orm|mutex|deadlock|polymorphism|polimorfismo|try/\w+|try-catch|
        async/await|rebase|tailwind|heroku|(?:chrome|browser) extension|extension de chrome|
        implement\w* (?:an? |una? )?(?:stack|queue|heap|trie|cache|pila|cola)|
        dependency injection|inyeccion de dependencias|shell (?:command|script)|comando de shell|
        (?:let|var) (?:and|vs|or|y|o) (?:const|let|var)|lambda functions?|
        (?:yield|async|static|final|virtual|volatile|self|super|const|abstract|void) keyword|
        palabra (?:clave|reservada) \w+|environment variables?|variables? de entorno|
        (?:telegram|discord|slack) bot|bot de (?:telegram|discord|slack)|
        (?:does not|doesn't|won't|no) compila?e?)\b""",
    ),
    (
        "something wrong",
        0.3,
        r"""\b(?:errors?|fails?|failing|failed|crash\w*|broken|not work\w*|slow|faster|falla\w*|
        lent[ao]|
        mas rapid[ao]|no funciona|wrong|problem|problema|issue)\b""",
    ),
    (
        "this code",
        0.8,
        r"""\b(?:this|following|est[ae]|siguiente) (?:python |sql )?(?:functions?|code|snippet|
        script|quer(?:y|ies)|funcion|codigo|bucle|consulta sql|regex)\b""",
    ),
    (
        "error message",
        1.0,
        r"""\b(?:syntax|type|key|attribute|runtime|compilation|compile|segmentation|linker|cors|
        null ?reference) ?(?:error|exception|fault)s?\b|\bundefined is not\b|\bis not defined\b|
        \berror de (?:sintaxis|compilacion|segmentacion)\b""",
    ),
    (
        "file of code",
        1.0,
        r"""(?<![\w/@.])[\w-]{2,60}\.(?:py|js|tsx?|jsx|java|cpp|hpp|cs|go|rs|rb|php|sql|html|s?css|
        sh|ps1|ya?ml|kt|ipynb|toml|c|h)\b(?!\.\w)|\b(?:makefile|dockerfile|package\.json)\b""",
    ),
    ("file of data", 0.5, r"(?<![\w/@])[\w*-]{1,60}\.(?:json|xml|csv|log|txt|tar|gz|zip)\b"),
    (
        "work on files",
        0.6,
        r"""\b(?:find|list|search|count|delete|remove|copy|move|rename|print|show|display|archive|
        read|open|compress|change|set|create|get|le[eo]r?|abr(?:e|o|ir)|busca|lista|elimina|
        borra|copia|mueve|renombra)\b
        (?: \S{1,25}){0,5} (?:files?|director(?:y|ies)|folders?|symlinks?|archivos?|ficheros?|
        carpetas?|directorios?)\b""",
    ),
    (
        "file system",
        0.6,
        r"""\b(?:current (?:working )?(?:director(?:y|ies)|folder)|director(?:y|ies) (?:tree|named|
        recursively|in|under|and)|sub-?director\w+|symbolic links?|standard (?:output|input|error)|
        permissions?|recursively|(?:regular|hidden|empty) files?|disk usage|file ?names?|
        files? (?:in|under|named|called|whose|older|newer|larger|smaller|modified|owned|ending|
        starting|matching|containing|with|that|which)|archivos? (?:en|con|que|llamados)|
        directorio actual|lines? (?:in|of|from|that|containing|matching)|
        process(?:es)? (?:id|named|running|with)|pid|root user|hostname|inode)\b""",
    ),
    (
        "question to a table",
        0.5,
        r"""\b(?:show|list|find|return|give|display|what (?:is|are)|
        which|muestra|lista)(?: me)?
        (?: the| all| los| las| el)? (?:\w{1,15} ){0,2}(?:names?|ids?|titles?|count|total|average|
        number|nombres?|titulos?) (?:and|of|for|de|y)\b""",
    ),
    (
        "order or grouping",
        0.6,
        r"""\b(?:ordered|sorted|grouped) by\b|\b(?:ascending|descending|alphabetical) order\b|
        \bfor each \w+\b|\border(?:ed|adas?|ados?) (?:by|por)\b|\bagrupad[oa]s? por\b""",
    ),
    (
        "mathematics",
        -0.5,
        r"""\bderivad[ao]s?\b|\bderivatives?\b|\bintegral(?:es|s)?\b|\basintota|\basymptote|
        \bdominio de\b|\bdomain of\b|\bgraph of\b|\bgrafica de\b|\blimite\b|\bpolinomi|
        \bpolynomial|\bparabola\b|\b[fgh] ?\( ?x ?\)|\becuacion|\bequation|
        \bteorema\b|\btheorem\b""",
    ),
    (
        "a text to write",
        -1.0,
        r"""\b(?:write|compose|draft|escrib\w+|redact\w+|crea|create|haz(?:me)?|improve|review|
        mejora|revisa|help me with)\b
        (?: (?!(?:that|which|to|for|que|para|with|con|function|class|code|script|program)\b)
        \w{1,15}){0,4}[ ]
        (?:poems?|poema|story|stories|cuento|historia|essays?|ensayo|letters?|carta|songs?|cancion|
        speech|discurso|articles?|articulo|blog post|novel|novela|haiku|cv|resume|curriculum|
        screenplay|guion|tweet|press release|rap|jokes?|chistes?|slogan|proposal|dialogue|scene|
        correo|e-?mail(?! valid| regex| address| pars))\b""",
    ),
    (
        "people and history",
        -0.5,
        r"""\b(?:who (?:created|invented|made|was)|quien (?:creo|invento|fue)|when was|cuando se|
        history of|historia de|years? of experience|anos de experiencia|inventor|salaries|sueldos|
        job|career|empleo|jobs|career|courses?|cursos?)\b""",
    ),
)


def evidence(text: str) -> dict[str, float]:
    """Return the evidence for code (weight > 0) and against it (< 0) in `text`, by name."""
    looks = f"\n{_sample(text)}\n"
    found = {clue.name: clue.weight for clue in _SYNTAX if clue.pattern.search(looks)}
    for name, weight in _requests(fold(_instruction(text))).items():
        by_chance = 0 < weight < THRESHOLD and len(text) > _SHORT_CHARS
        found[name] = weight / 2 if by_chance else weight
    return found


def _requests(asks: str) -> dict[str, float]:
    hits = [clue for clue in _REQUESTS if clue.pattern.search(asks)]
    if not hits and not _WORDS.search(asks):
        return {}
    asks = _IDIOMS.sub(" ", asks)
    found = {clue.name: clue.weight for clue in hits if clue.pattern.search(asks)}
    different = len(set(_WORDS.findall(asks)))
    if different > 1:
        found["programming words"] = 0.8
    elif different:
        found["programming word"] = 0.5
    return found


def _sample(text: str) -> str:
    """Return head, middle and tail of a long text."""
    if len(text) <= 3 * _SAMPLE_CHARS:
        return text
    middle = (len(text) - _SAMPLE_CHARS) // 2
    parts = text[:_SAMPLE_CHARS], text[middle : middle + _SAMPLE_CHARS], text[-_SAMPLE_CHARS:]
    return "\n".join(parts)


def _instruction(text: str) -> str:
    """Return where a request is in a long text, its beginning and end; the rest is material.

    In thousands of words of any material some will look like a request for code.
    """
    if len(text) <= 3 * _INSTRUCTION_CHARS:
        return text
    return f"{text[: 2 * _INSTRUCTION_CHARS]}\n{text[-_INSTRUCTION_CHARS:]}"


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
