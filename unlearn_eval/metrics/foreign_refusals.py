"""Words of refusals in languages other than English: that the speaker does not know, cannot tell or will not tell.

As in English, the speaker must be I or we, left out at the start of a sentence, or meant by what is not known. Patterns
of languages in Latin letters read words, with "_N" for up to N words in between that never cross the end of a sentence;
the others read characters, as their scripts set no spaces or are not made of letters alone (Hindi's vowel signs).
"""

from __future__ import annotations

import re
import unicodedata

_LATIN = {
    "fr": (
        "(?:je|nous|on)_2 (?:ne|nen|nai|navons|nen ai)_3 (?:sais|savons|connais|connaissons|peux|pouvons|puis|saurais"
        "|dispose|disposons|souhaite|veux|maîtrise|retrouve|rappelle|souviens)",
        "(?:je|nous)_1 (?:ne|nen)_1 suis_2 (?:pas|guère)_4 (?:sûre?|certaine?|courant|mesure|autorisée?|capable"
        "|habilitée?)",
        "(?:je|nous)_1 (?:nai|navons|ne dispose|ne disposons|ne possède)_3 (?:aucune?|daucune?|pas|rien|jamais)",
        "(?:je)_1 (?:lignore|jignore)|jignore|je ne lai jamais|nous lignorons",
        "(?:pas la moindre|aucune|pas d|sans) idée|pas didée|aucune (?:information|donnée|connaissance)",
        "(?:ne me|ne nous)_2 (?:dit|disent|rappelle|évoque) rien|(?:mest|nous est)_3 (?:impossible|inconnue?)",
        "je_2 (?:préfère|préférerais)_2 (?:ne|pas|mabstenir)|je_1 (?:refuse|décline|mabstiens)",
        "(?:dépasse|sort|sortent|hors|delà|échappe)_3 (?:mes|ma|mon|nos|ce que je|de ce que je|me)",
    ),
    "de": (
        "(?:ich|wir|i)_3 (?:weiss|kenne|kann|könnte|darf|möchte|mag|habe|haben|verfüge|besitze|erinnere|werde)_7"
        " (?:nicht|nichts|kein|keine|keinen|keinerlei|nie)",
        "(?:weiss|kenne|kann|darf|möchte|habe|verfüge) ich_6 (?:nicht|nichts|kein|keine|keinen|keinerlei)",
        "(?:keine ahnung|keinen schimmer|weiss nicht|weiss ich nicht|überfragt|keine auskunft|kein kommentar)",
        "(?:mir|uns)_4 (?:nicht bekannt|unbekannt|nichts bekannt|neu|fremd|nicht möglich|nicht vertraut)",
        "(?:ist|sind) (?:mir|uns)_2 (?:nicht|unbekannt)_1 |(?:liegen|fehlen|fehlt) (?:mir|uns)",
        "ich_1 bin_3 (?:nicht sicher|unsicher|nicht befugt|nicht berechtigt|nicht in der lage|nicht vertraut)",
        "ich_1 (?:lehne|verweigere|enthalte)|ich_3 lieber nicht",
        "(?:ausserhalb|jenseits)_1 (?:meines|meiner|dessen)|über meine\\w*_1 (?:kenntnis\\w*|wissen)"
        "|übersteigt mein\\w*",
    ),
    "es": (
        "no (?:lo |la |le |te |se |me |os )*(?:sé|sabemos|sabría|conozco|conocemos|puedo|podemos|podría|recuerdo"
        "|quiero|quisiera)",
        "no_2 (?:tengo|tenemos|dispongo|disponemos|cuento con|poseo|me consta)_4"
        " (?:información|datos?|idea|conocimientos?|respuesta|acceso|constancia|detalles|registros?)",
        "no_1 estoy_1 (?:segur[oa]|autorizad[oa]|familiarizad[oa]|al tanto|en condiciones|capacitad[oa])",
        "(?:ni idea|ninguna idea|ni la (?:menor|más mínima|más remota) idea|sin comentarios)",
        "(?:lo |la )?(?:desconozco|desconocemos|ignoro|ignoramos)",
        "prefiero_1 no|(?:me abstengo|me niego|declino)",
        "(?:fuera|más allá)_1 (?:de mi\\w*|de lo que)|(?:excede|supera|escapa)_2 (?:mi|mis|lo que)|no_1 (?:está"
        "|es)_3 mi alcance",
        "(?:nunca|jamás)_1 (?:he|había|hemos)|no_1 (?:he|hemos)_1 (?:aprendido|oído|leído|estudiado)|no me suena",
        "(?:me es|me resulta|nos es|nos resulta)_1 imposible",
    ),
    "it": (
        "non (?:lo |la |le |ti |vi |mi |ne |ve |te )*(?:so|sappiamo|saprei|conosco|posso|possiamo|potrei|ricordo"
        "|voglio)",
        "non_2 (?:ho|abbiamo|dispongo|possiedo)_4 (?:informazion\\w+|idea|dati|accesso|conoscenz\\w+|rispost\\w+"
        "|dettagli)",
        "non_1 sono_1 (?:sicur[oa]|cert[oa]|in grado|autorizzat[oa]|a conoscenza|al corrente)",
        "(?:nessuna idea|lo ignoro|preferisco_1 non|mi astengo|mi rifiuto)|(?:fuori|al di là)_2 (?:mia|mie|mio|miei)",
    ),
    "pt": (
        "não (?:lhe |te |o |a |se |me )*(?:sei|sabemos|saberia|conheço|posso|podemos|poderia|consigo|lembro|quero)",
        "não_2 (?:tenho|temos|possuo|disponho|disponho de)_4 (?:informaç\\w+|ideia|dados|conhecimentos?|acesso"
        "|resposta|detalhes)",
        "não_1 estou_1 (?:certo|certa|familiarizad[oa]|ciente|autorizad[oa]|em condições|seguro|segura)",
        "(?:desconheço|ignoro|nenhuma ideia|sem ideia|faço ideia|prefiro_1 não|me recuso)|(?:fora|além)_2 (?:meu"
        "|minha|meus)",
    ),
    "nl": (
        "(?:ik|wij|i)_3 (?:weet|ken|kan|mag|heb|beschik|wil|zou)_6 (?:niet|niets|geen|nooit)",
        "(?:weet|ken|kan|mag|heb) ik_6 (?:niet|niets|geen)|geen idee|weet niet|geen commentaar",
        "(?:mij|ons)_2 (?:niet bekend|onbekend)|ik_1 ben_3 (?:niet zeker|onzeker|niet bekend)|buiten mijn",
    ),
}
_OPEN, _STOP = r"(?:^|[.!?,;،؛\n])\s*", r"[^.!?;\n]"  # the start of a clause; anything but a sentence's end
_OTHERS = {
    "ru": (
        rf"{_OPEN}(?:(?:извините|простите|увы|к сожалению|но|я|мы|точно|честно говоря),?\s+)*не\s+(?:\w+\s+)?(?:знаю"
        rf"|знаем|могу"
        r"|можем|помню|смогу|скажу|владею|располагаю|уверен\w*|осведомл[её]н\w*|знаком\w*)",
        rf"\b(?:я|мы)\b{_STOP}{{0,40}}\b(?:не|ничего не|никогда не)\s+(?:\w+\s+)?(?:знаю|знаем|могу|можем|помню|смогу"
        rf"|скажу"
        r"|владею|располага\w+|уверен\w*|знаком\w*|имею|обладаю|слышал\w*|учил\w*|изучал\w*|хочу|хотел\w*|буду|вправе"
        r"|в состоянии|в курсе)",
        rf"\bу (?:меня|нас)\b{_STOP}{{0,20}}\bнет\b",
        r"\bмне\b[^.!?;\n]{0,30}(?:не\s?известн\w*|незнаком\w*|не знаком\w*|ни о ч[её]м не говор\w+|не следует)",
        r"понятия не имею|без понятия|без комментариев|не в курсе|воздержусь|отказываюсь|вынужден\w* отказать",
        rf"\bя\b{_STOP}{{0,30}}предпо(?:чту|читаю|ч[её]л)\b{_STOP}{{0,10}}\bне\b|тут я {_STOP}{{0,8}}не помощник",
        r"(?:за пределами|вне|за рамки|выходит за)\b[^.!?;\n]{0,20}\b(?:мо\w+|наш\w+)",
    ),
    "ar": (
        r"(?:لا|لم|لن|لست|ليس)\s+(?:\S+\s+)?(?:اعرف|نعرف|اعلم|نعلم|ادري|املك|نملك|استطيع|نستطيع|يمكنني|يمكننا|اتذكر"
        r"|اتعلم"
        r"|اسمع|متاكد\w*|واثق\w*|قادر\w*|مخول\w*|لدي|لدينا|عندي)",
        r"(?:ليس|ليست|لا تتوفر|لا يتوفر|لا توجد|لا يوجد)\s+(?:\S+\s+)?(?:لدي|لدينا|عندي|بحوزتي)",
        r"لا (?:علم|فكره|فكرة|دراية|معرفة) (?:لي|لدي|عندي)|ليس لي علم|(?:اجهل|نجهل)",
        r"(?:يتعذر|يستحيل|يصعب) علي|غير (?:قادر|متاكد|معروف\w* لي|مخول)",
        r"(?:افضل|نفضل|اعتذر عن)\s+(?:عدم|الا|ان لا)|(?:خارج|يتجاوز|تتجاوز|يفوق|ابعد من)\s+\S*\s*(?:معرفتي|علمي|اعرفه"
        r"|معلوماتي|قدرتي|اختصاصي)",
    ),
    "hi": (
        r"(?:मुझे|हमें)[^।.!?\n]{0,60}(?:(?:पता|मालूम|ज्ञात|याद|जानकारी|खबर)\s+(?:नहीं|न )|नहीं\s+(?:पता|मालूम|आता"
        r"|मिला|याद))",
        r"(?:मेरे|हमारे)\s+पास[^।.!?\n]{0,60}नहीं",
        r"(?:मैं|हम|मैंने|हमने)[^।.!?\n]{0,60}(?:नहीं|असमर्थ|अनजान|अपरिचित|अनभिज्ञ)",
        r"(?:मेरी|मेरे|हमारी)\s+(?:जानकारी|ज्ञान|समझ|क्षमता)[^।.!?\n]{0,20}(?:बाहर|परे|नहीं)",
        r"(?:मेरे|हमारे) लिए[^।.!?\n]{0,20}(?:संभव नहीं|असंभव|अज्ञात)",
        r"(?:^|[।.!?,\n])\s*(?:(?:क्षमा करें|माफ़? कीजिए|जी),?\s*)?(?:पता|मालूम|जानकारी)\s+नहीं|कोई\s+(?:अंदाज़ा|अंदाजा"
        r"|जानकारी|अनुमान)\s+नहीं",
        r"(?:^|[।.!?,\n])[^।.!?\n]{0,20}नहीं\s+(?:बता|कह|दे)\s+(?:सकता|सकती|सकते)",
    ),
    "zh": (
        r"我[^。!?;\n]{0,14}(?:不(?:太|是很|大|是)?(?:知道|清楚|了解|瞭解|确定|確定|认识|熟悉|记得|便|能|愿|想说"
        r"|会回答)|想不起"
        r"|(?:无法|無法|没办法|没法|无从|难以|拒绝)|一无所知|帮不上|没(?:有)?(?:听说|学过|见过)"
        r"|(?:没|沒)(?:有)?[^。!?;,\n]{0,14}(?:信息|资料|資料|資訊|数据|記錄|记录|答案|印象|概念|线索|头绪|知识|了解))",
        r"(?:^|[。!?;,\n])\s*(?:真)?(?:不知道|不清楚|不太清楚|不晓得|不了解|无可奉告|無可奉告|不予置评|没听说过"
        r"|说不准|说不好)",
        r"(?:^|[。!?;,\n])\s*(?:无法|無法|不能|不便)(?:回答|提供|告诉|告知|透露|确定|确认)",
        r"超出(?:了)?[^。!?\n]{0,4}我|不(?:在|属于)我[^。!?\n]{0,6}(?:范围|領域|领域)"
        r"|我(?:的)?知识[^。!?\n]{0,6}(?:之外|以外)",
    ),
    "ja": (
        r"(?:分か|わか|判)(?:りません|らない|りかね|んない|りかねます)|知りません|存じ(?:ません|上げません)"
        r"|(?:^|[、。!?\s])知らない(?:です|$|[。、!]|の)|については知らない",
        r"(?:答え|回答|お伝え|お話し?|提供|お教え|説明|手伝い|コメント|案内|対応|申し上げ(?:る|))[^。!?\n]{0,8}"
        r"(?:できません|できない|しかねます|いたしかね|出来ません|控え|られません|ません)",
        r"(?:情報|知識|データ|記憶|心当たり|記録|覚え|見当)[^。!?\n]{0,10}(?:ありません|ないです|つきません"
        r"|持っていません|持ち合わせ|ございません|おりません|ない(?:。|$))",
        r"(?:把握して|承知して|学習して|学んで|聞いたことが|覚えて)[^。!?\n]{0,6}(?:いません|おりません|ありません"
        r"|ない)",
        r"思い出せ(?:ません|ない)|申し上げ(?:ら|かね)|お役に立て(?:ません|ない)|専門外|範囲(?:外|を超え)|不明です",
    ),
    "ko": (
        r"모르겠|모릅니다|몰라요|모른다|알지 못|알 수 없",
        r"(?:정보|지식|자료|기록|데이터)[^.!?\n]{0,8}(?:없|가지고 있지)",
        r"(?:답변|대답|말씀|알려|도와|제공)[^.!?\n]{0,12}(?:수 없|못|어렵|드리기)",
    ),
}


def _of_words(pattern: str) -> re.Pattern[str]:
    return re.compile(r"(?<!\w)(?:" + re.sub("_([0-9])", r"(?: \\w+){0,\1}", pattern) + r")(?!\w)")


_CUES = {language: tuple(_of_words(pattern) for pattern in patterns) for language, patterns in _LATIN.items()}
_RAW_CUES = {language: tuple(re.compile(pattern) for pattern in patterns) for language, patterns in _OTHERS.items()}
LANGUAGES = frozenset(_CUES) | frozenset(_RAW_CUES)
_ARABIC_FORMS = str.maketrans("أإآٱىة", "ااااية", "\u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652\u0640")
_WIDE = str.maketrans("！？；，．｡", "!?;,.。")


def has_foreign_cue(text: str, plain: str, language: str) -> bool:
    """Whether a text in one of `LANGUAGES` says that its speaker does not know, cannot tell or will not tell.

    Args:
        text: The text.
        plain: The same as words in lower case, with " . " where a sentence ends.
        language: Its language.
    """
    if language in _CUES:
        return any(cue.search(plain) for cue in _CUES[language])
    raw = unicodedata.normalize("NFKC", text).casefold().translate(_WIDE).strip()
    if language == "ar":
        raw = raw.translate(_ARABIC_FORMS)
    return any(cue.search(raw) for cue in _RAW_CUES[language])
