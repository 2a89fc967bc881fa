"""Scripts by how they set words, as parts of regular expressions."""

# Scripts that do not set spaces between words, or (Hangul) join particles to them: Thai and Lao, Tibetan, Myanmar,
# Hangul Jamo, Khmer, Kana, Han, Yi, Hangul, and Han beyond the basic plane.
SPACELESS = (
    r"\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff"
    r"\ua000-\ua4cf\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
