// What live pages need beyond htmx: a way to pause them, and details that stay open when a part is replaced.
(() => {
  "use strict";
  const button = document.getElementById("live-pause");
  let paused = false;
  let open = [];
  let focused = null;

  const hasLive = () => document.querySelector("[hx-trigger^='every']") !== null;
  const show = () => {
    button.hidden = !hasLive() && !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Resume live updates" : "Pause live updates";
  };

  // The same control in the new part, or the beginning of the content where there is none any more.
  const refocus = (old) => {
    const same = Array.from(document.querySelectorAll(old.tagName)).find((one) =>
      old.id ? one.id === old.id : one.outerHTML === old.outerHTML || (old.href && one.href === old.href));
    (same || document.getElementById("main")).focus({ preventScroll: true });
  };

  button.addEventListener("click", () => { paused = !paused; show(); });

  // Only what a clock asks for is held back; a hidden page needs no updates either.
  document.addEventListener("htmx:beforeRequest", (event) => {
    const trigger = event.detail.elt.getAttribute("hx-trigger") || "";
    if (trigger.startsWith("every") && (paused || document.hidden)) event.preventDefault();
  });

  document.addEventListener("htmx:beforeSwap", (event) => {
    // Whoever is typing into a part, or has a menu of it open, is not to lose it.
    const target = event.detail.target;
    const active = document.activeElement;
    const types = active && target.contains(active) && active.matches("input:not([type=hidden]), textarea, select");
    focused = active && target.contains(active) ? active : null;
    if (types || (target.querySelector("input[name=reason]") || {}).value) event.detail.shouldSwap = false;
    open = Array.from(document.querySelectorAll("details[id]"), (one) => [one.id, one.open]);
  });
  document.addEventListener("htmx:afterSettle", () => {
    for (const [id, state] of open) {
      const one = document.getElementById(id);
      if (one) one.open = state;
    }
    if (focused && !focused.isConnected) refocus(focused);
    focused = null;
    show();
  });
  show();
})();
