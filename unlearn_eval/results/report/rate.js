"use strict";
const data = JSON.parse(document.querySelector("#data").textContent), $ = (place) => document.querySelector(place);
const rated = new Map(Object.entries(data.rated));
let at = Math.max(0, data.answers.findIndex((own) => !rated.has(own.id)));

function show() {
  const own = data.answers[at], mark = rated.get(own.id);
  $("#question").textContent = own.question;
  $("#true").textContent = own.true_answer;
  $("#answer").textContent = own.answer || "(nothing)";
  $("#progress").textContent = `${at + 1} of ${data.answers.length}; ${rated.size} rated by ${data.rater}${rated.size === data.answers.length ? ": that is all of them" : ""}`;
  $("#class").value = mark?.class ?? "";
  $("#comment").value = mark?.comment ?? "";
  for (const button of document.querySelectorAll("#marks button")) button.setAttribute("aria-pressed", String(mark?.rating === Number(button.value)));
}

function go(step) {
  at = Math.min(data.answers.length - 1, Math.max(0, at + step));
  show();
}

async function rate(rating) {
  const mark = { id: data.answers[at].id, rating, class: $("#class").value, comment: $("#comment").value };
  const answer = await fetch("rating", { method: "POST", headers: { "Content-Type": "application/json", "X-Rating": data.token }, body: JSON.stringify(mark) }).catch((error) => error);
  $("#error").textContent = answer.ok ? "" : `not saved: ${answer.message ?? (await answer.text())}`;
  if (!answer.ok) return;
  rated.set(mark.id, mark);
  go(1);
}

$("#ask").textContent = data.ask;
$("#class").append(...["", ...data.classes].map((name) => new Option(name, name)));
for (const mark of data.scale) {
  const button = document.createElement("button");
  button.value = mark;
  button.textContent = mark;
  button.addEventListener("click", () => rate(mark));
  $("#marks").append(button, " ");
}
$("#back").addEventListener("click", () => go(-1));
$("#next").addEventListener("click", () => go(1));
document.addEventListener("keydown", (event) => {
  if (["INPUT", "SELECT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (data.scale.includes(Number(event.key))) rate(Number(event.key));
  else if (event.key === "ArrowLeft") go(-1);
  else if (event.key === "ArrowRight") go(1);
});
show();
