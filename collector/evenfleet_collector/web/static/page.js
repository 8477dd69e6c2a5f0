"use strict";
// The page is whole without this script; with it, the parts that changed are fetched and swapped when cells change, and
// once a minute: a device that falls asleep changes no cell.
(() => {
  const live = document.getElementById("live");
  const follow = document.getElementById("follow");
  const parts = ["counts", "matrix", "flags", "refusals"];
  const quiet_ms = 700;
  let due = false, running = false;

  const say = (state, text) => { follow.className = "follow " + state; follow.textContent = text; };

  const swap = (html) => {
    const next = new DOMParser().parseFromString(html, "text/html");
    const verdicts = new Map([...live.querySelectorAll("[data-verdict]")].map((e) => [e.id, e.dataset.verdict]));
    const focused = document.activeElement && document.activeElement.id;
    for (const id of parts) {
      const now = document.getElementById(id), then = next.getElementById(id);
      if (!then) continue;
      if (now.innerHTML !== then.innerHTML) now.innerHTML = then.innerHTML; // the scrolled element itself stays
      Object.assign(now.dataset, then.dataset);
    }
    for (const cell of live.querySelectorAll("[data-verdict]")) {
      if (verdicts.has(cell.id) && verdicts.get(cell.id) !== cell.dataset.verdict) cell.classList.add("changed");
    }
    if (focused && document.activeElement.id !== focused) {
      const again = document.getElementById(focused);
      if (again) again.focus({ preventScroll: true });
    }
  };

  const refresh = async () => {
    due = true;
    if (running) return;
    running = true;
    while (due) {
      due = false;
      try {
        const chosen = live.dataset.release;
        const answer = await fetch("/fragments/parity" + (chosen ? "?release=" + chosen : ""));
        if (answer.ok) swap(await answer.text());
      } catch { /* the stream says when the collector is back */ }
      await new Promise((resolve) => setTimeout(resolve, quiet_ms));
    }
    running = false;
  };

  const stream = new EventSource("/api/v1/stream?after_version=" + document.getElementById("counts").dataset.version);
  stream.addEventListener("open", () => { say("on", "live"); });
  stream.addEventListener("error", () => { say("off", "reconnecting…"); });
  stream.addEventListener("cells", refresh);
  setInterval(refresh, 60000);

  const choice = document.getElementById("release");
  if (choice) choice.addEventListener("change", () => choice.form.submit());
  document.documentElement.classList.add("scripted");
})();
