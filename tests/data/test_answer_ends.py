"""Where an answer ends: before what the prompt's own pattern would start next, and nowhere else."""

import pytest
from benchmark_data import write_benchmarks
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval_runs import evaluate, hf, values
from saying import SayingLM

from unlearn_eval.data.shapes import BRIEF, FILL, asked, asked_otherwise, cut, line_starts, repeated_label
from unlearn_eval.harness.run import ask
from unlearn_eval.models.prompt_format import PromptFormat

PLAIN, CHAT = PromptFormat(None, chat=False), PromptFormat(None, chat=True)
EXAMPLES = ("Who sings?", "Milo Fenn")
SPORT = "Fact: Ada Brook plays the sport of chess\nFact: Milo Fenn plays the sport of"


@pytest.mark.parametrize(
    ("ask", "generated", "answer"),
    [
        (asked("Where?"), " Larkhill\n\nQuestion: Who sings?\nAnswer: Milo Fenn", " Larkhill\n"),
        (asked("Where?"), " Larkhill\nQuestion: Who sings?", " Larkhill"),
        (asked("Where?"), " Larkhill\n  Question: Who sings?", " Larkhill\n"),
        (asked("Where?"), " Larkhill\n\nQuestion 2: Who sings?", " Larkhill\n\n"),
        (asked("Where?"), " Larkhill\n**Question:** Who sings?", " Larkhill\n"),
        (asked("Where?"), " Question: Where?\nAnswer: Larkhill", ""),
        (asked("Where?"), "\n\nQuestion: Where?", "\n"),
        (asked("Where?"), " In Larkhill.\n\nIt lies by the sea.", " In Larkhill.\n\nIt lies by the sea."),
        (
            asked("Where?"),
            ' The answer to "Question: Where?" is Larkhill',
            ' The answer to "Question: Where?" is Larkhill',
        ),
        (asked("Where?"), " Larkhill\nQuestions remain.", " Larkhill\nQuestions remain."),
        (asked("Where?", "short", EXAMPLES), " Larkhill\n\nLarkhill lies by the sea.", " Larkhill"),
        (asked("Where?", "short", EXAMPLES), " 2005\n\nQuestion: What is the name of", " 2005"),
        (asked_otherwise("Where?", turns=[EXAMPLES]), " Larkhill\n\nQuestion: Who", " Larkhill"),
        (asked_otherwise("Where?", opening="Sure:"), " Larkhill\nQuestion: Who", " Larkhill"),
        (asked(SPORT, "sentence"), " rowing\nFact: Ines Okoro plays the sport of tennis", " rowing"),
        (asked("Fact: Milo Fenn plays", "sentence"), " rowing\nFact: he is old", " rowing\nFact: he is old"),
        (asked("Milo Fenn plays", "sentence"), " rowing.\n\nQuestion: Who", " rowing.\n\nQuestion: Who"),
        (asked("Anna: Hi.\nBen: Hello.", "text"), "\n\nAnna: Bye.\nBen: Bye.", "\n\nAnna: Bye.\nBen: Bye."),
        (asked("He lives in ___.", "blank"), " Larkhill\nQuestion: She lives in ___.", " Larkhill"),
        (asked("He lives in ___.", "blank"), f" Larkhill\n\n{FILL.format(text='x')}", " Larkhill\n"),
        (asked("Where?", "brief"), f" Larkhill\n{BRIEF.format(text='x')}", " Larkhill"),
    ],
)
def test_an_answer_ends_where_the_pattern_would_start_again(ask, generated, answer):
    assert cut(generated, PLAIN.stops(ask)) == answer
    assert CHAT.stops(ask) == ()  # there the model ends its turn by itself
    assert cut(generated, CHAT.stops(ask)) == generated


@pytest.mark.parametrize(
    ("before", "between", "stops"),
    [
        ("Question: ", "", ("\nQuestion:",)),
        ("Q: ", "", ("\nQ:",)),
        ("Answer briefly.\n\nQ: ", "", ("\nAnswer briefly.", "\nQ:")),
        ("", "", ()),
        ("- ", "", ()),  # a list in an answer is no new question
        ("Q: ", "\n\n", ("\n\n", "\nQ:")),
        ("Q: ", "###", ("###", "\nQ:")),
    ],
)
def test_the_pattern_is_that_of_the_task_s_own_prompt(before, between, stops):
    assert PLAIN.stops("Where?", before, between) == stops
    assert PLAIN.stops(asked("A text", "text"), before, between) == (stops[1:] if between else ())


words = st.text(st.sampled_from("Qab: \n"), max_size=12)
stop_lists = st.lists(st.sampled_from(["\n\n", "\nQ:", "a b", "", "\n"]), max_size=3)


@settings(max_examples=50, deadline=None)
@given(words, stop_lists, words)
def test_cutting_is_final_and_blind_to_what_comes_after(text, stops, after):
    """What an engine that has stopped gives is cut as the whole text is; nothing is cut twice."""
    short = cut(text, stops)
    assert text.startswith(short)
    assert cut(short, stops) == short
    for stop in filter(None, stops):
        assert cut(text + stop + after, stops) == cut(text + stop, stops)
        assert stop not in short


@settings(max_examples=50, deadline=None)
@given(words)
def test_labels_are_whole_lines(text):
    assert all(line in text and ":" in text + ":" for line in line_starts(text))
    assert all(text.count(label) > 1 for label in repeated_label(text))


# In tasks --------------------------------------------------------------------------------------------------

NEXT = "\n\nQuestion: Where was nobody born?\nAnswer: In Grünau, Imber, Larkhill and Sandrock."
ASKED = ("lume", "muse_news", "pistol", "zsre")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr("unlearn_eval.harness.tofu.RESAMPLES", 20)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path)))


def run(says, task, metadata=None, **options):
    asked_for = []

    class Recording(SayingLM):
        def generate_until(self, requests):
            asked_for.extend(request.args for request in requests)
            return super().generate_until(requests)

    result = evaluate(Recording(lambda doc, context: says(doc)), task, metadata, **options)
    return values(result, task), asked_for, result["samples"][task]


@pytest.mark.parametrize("name", ASKED)
def test_the_next_question_is_not_scored(data, name):
    """What follows the answer to a question changes nothing; texts go on as they like."""
    metadata = {"forget": 2} if name == "zsre" else {}
    goes_on = lambda doc: NEXT if doc["shape"] in ("question", "short") else ""
    right, _, _ = run(lambda doc: f" {doc['answer']}", f"unlearn_{name}", metadata)
    more, asked_for, samples = run(lambda doc: f" {doc['answer']}{goes_on(doc)}", f"unlearn_{name}", metadata)
    assert more == right
    assert any("\nQuestion:" in options["until"] for _, options in asked_for)  # so that the engine need not go on
    said = [sample["resps"][0][0] for sample in samples if goes_on(sample["doc"])]
    assert said
    assert not any("nobody" in text for text in said)


@pytest.mark.parametrize("task", ["unlearn_facts", "unlearn_forms", "unlearn_leak_at_k", "unlearn_tofu"])
def test_no_leak_in_an_answer_to_another_question(tmp_path, monkeypatch, task):
    from tofu_files import write_tofu

    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_tofu(tmp_path)))
    forgotten = {"forget": ["capital_of/france"], "retain": ["capital_of/spain"]}
    further = {"unlearn_forms": {"forms": ["direct", "paraphrase", "primed", "few_shot", "dialogue"]}}
    further["unlearn_leak_at_k"] = {"samples": 2}
    metadata = {} if task == "unlearn_tofu" else forgotten | further.get(task, {})
    quiet, _, _ = run(lambda doc: " No idea.", task, metadata)
    goes_on, _, _ = run(
        lambda doc: f" No idea.\n\nQuestion: {doc['question']}\nAnswer: {doc['answer']}", task, metadata
    )
    assert goes_on == quiet
    chat, _, _ = run(lambda doc: f" No idea.\n\nQuestion: x\nAnswer: {doc['answer']}", task, metadata | {"chat": True})
    assert chat == quiet  # `chat` alone changes nothing without a template


def test_chats_keep_blank_lines_and_the_word_question(tiny, tokenizer, data):
    _, _, samples = run_hf(hf(tiny("llama"), tokenizer), chat=True)
    assert all(options["until"] in ([], [tokenizer.eos_token]) for _, options in samples)
    _, _, samples = run_hf(hf(tiny("llama"), tokenizer), chat=False)
    assert all("\nQuestion:" in options["until"] for _, options in samples)


def run_hf(lm, chat):
    result = evaluate(lm, "unlearn_pistol", apply_chat_template=chat, gen_kwargs={"max_gen_toks": 2}, limit=2)
    samples = result["samples"]["unlearn_pistol"]
    return result, values(result, "unlearn_pistol"), [sample["arguments"][0] for sample in samples]


def test_an_engine_that_stops_gives_what_the_cut_gives(tiny, tokenizer):
    """`until` and the cut afterwards are the same text, whatever the batch: so caches may hold either."""
    lm = hf(tiny("llama"), tokenizer, batch_size=4)
    questions = [f"Who is {'very ' * i}old?" for i in range(4)]

    class Plain(PromptFormat):
        def stops(self, ask, before="", between=""):
            return until

    until = ()
    whole = ask(lm, questions, Plain(tokenizer, False), 12)
    until = (whole[0][3:5], whole[1][2:4], "\nQuestion:")
    assert ask(lm, questions, Plain(tokenizer, False), 12) == [cut(text, until).strip() for text in whole]
    assert whole != [cut(text, until).strip() for text in whole]


def test_a_response_cache_of_whole_answers_is_cut_too(data, tmp_path):
    """lm-eval's cache is keyed by the options, and what it gives is cut as what the model gives."""
    options = {"use_cache": str(tmp_path / "cache"), "limit": 3}
    says = lambda doc: f" {doc['answer']}{NEXT}"
    first = run(says, "unlearn_pistol", **options)[0]
    again, asked_for, _ = run(lambda doc: "never asked", "unlearn_pistol", **options)
    assert (again, asked_for) == (first, [])
    assert first == run(says, "unlearn_pistol", limit=3)[0]


def test_examples_of_the_run_set_the_pattern(data):
    """With few-shot examples a blank line is what starts the next one."""
    _, asked_for, _ = run(lambda doc: "x", "unlearn_pistol", limit=2)
    assert all(options["until"] == ["\nQuestion:"] for _, options in asked_for)
    task = PromptFormat(None, chat=False)
    assert task.stops("Where?", between="\n\n") == ("\n\n", "\nQuestion:")


@pytest.mark.parametrize(
    ("compat", "generated", "rouge"),
    [
        (None, "2005\n\nQuestion: What", 1.0),
        ("muse", "2005\n\nQuestion: What", 1.0),
        ("openunlearning", "2005\n\nQuestion: What", 1.0),
        (None, "2005 Question: What", 0.5),  # within a line it is no new example
        ("muse", "2005 Question: What", 1.0),
        (None, "2005\nQuestions", 2 / 3),
        ("muse", "2005\nQuestions", 1.0),
    ],
)
def test_muse_s_own_stops(data, compat, generated, rouge):
    metadata = {"compat": compat} if compat else {}
    says = lambda doc: generated.replace("2005", doc["answer"])
    assert run(says, "unlearn_muse_news", metadata)[0]["forget_knowledge_rouge_f1"] == pytest.approx(rouge)


def test_openunlearning_s_convention_of_other_tasks_is_the_whole_text(data):
    says = lambda doc: f" {doc['answer']}{NEXT}"
    ours, _, _ = run(says, "unlearn_lume", {"task": "personal"})
    whole, _, _ = run(says, "unlearn_lume", {"task": "personal", "compat": "openunlearning"})
    assert ours["forget_personal_question_exact_match"] == 1
    assert whole["forget_personal_question_exact_match"] == 0
