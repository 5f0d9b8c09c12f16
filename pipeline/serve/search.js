"use strict";
// Without this script the pages' forms and links do the same, one page after another.
let last = null;

async function show(url, options) {
  const results = document.getElementById("results");
  results.setAttribute("aria-busy", "true");
  last?.abort();
  const mine = (last = new AbortController());
  try {
    const answer = await fetch(url, { ...options, signal: mine.signal });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const found = page.getElementById("results") ?? page.querySelector("main");
    found.id = "results";
    results.replaceWith(document.adoptNode(found));
    document.title = page.title;
  } catch (error) {
    if (error.name === "AbortError") return;
    results.removeAttribute("aria-busy");
    results.textContent = "The server does not answer.";
  }
}

function searching(form) {
  const file = document.getElementById("image");
  const drop = document.getElementById("drop");

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const asked = new FormData(form);
    if (file.files.length) {
      show("/", { method: "POST", body: asked });
      return;
    }
    asked.delete("image");
    const url = "/?" + new URLSearchParams([...asked].filter(([, value]) => value));
    history.pushState(null, "", url);
    show(url);
  });
  for (const one of form.querySelectorAll("select, input[type=range]"))
    one.addEventListener("change", () => { if (form.q.value.trim() || file.files.length) form.requestSubmit(); });

  function preview() {
    drop.querySelector("img")?.remove();
    if (!file.files.length) return;
    const picture = document.createElement("img");
    picture.alt = "The chosen image";
    picture.src = URL.createObjectURL(file.files[0]);
    drop.prepend(picture);
    drop.closest("details").open = true;
    form.requestSubmit();
  }
  file.addEventListener("change", preview);
  function take(event, data) {
    const images = [...(data?.files ?? [])].filter((one) => one.type.startsWith("image/"));
    if (!images.length) return;
    event.preventDefault();
    const chosen = new DataTransfer();
    chosen.items.add(images[0]);
    file.files = chosen.files;
    preview();
  }
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event, event.dataTransfer);
  });
  document.addEventListener("paste", (event) => take(event, event.clipboardData));
  window.addEventListener("popstate", () => location.reload());
}

// A mark is set without leaving the page.
async function marking(event) {
  if (!event.target.matches("form.mark")) return;
  event.preventDefault();
  const number = event.target.number.value;
  const body = new URLSearchParams({ number, mark: event.submitter.value });
  const focused = event.submitter.className;
  await show(event.target.action, { method: "POST", body });
  document.querySelector(`#pair-${number} button.${focused}`)?.focus({ preventScroll: true });
}

function walking(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own, such as Back
  const form = document.getElementById("ask");
  const typing = event.target.closest("input, select, button");
  if (event.key === "/" && !typing && form) {
    event.preventDefault();
    form.q.select();
    return;
  }
  const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
  const links = [...document.querySelectorAll(".hit .to")];
  if (!steps || !links.length || (typing && !(event.target === form.q && event.key === "ArrowDown"))) return;
  event.preventDefault();
  const at = links.indexOf(document.activeElement);
  if (at < 0) return links[0].focus();
  const top = (one) => one.getBoundingClientRect().top;
  const list = links[at].closest("ol");
  const row = links.filter((one) => one.closest("ol") === list && Math.abs(top(one) - top(links[at])) < 2);
  links[Math.max(0, Math.min(links.length - 1, at + steps[0] + steps[1] * row.length))].focus();
}

if (document.getElementById("ask")) searching(document.getElementById("ask"));
document.addEventListener("submit", marking);
document.addEventListener("keydown", walking);
