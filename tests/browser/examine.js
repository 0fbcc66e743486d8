// What a page does wrong for somebody who sees, hears or types badly; one sentence for each.
() => {
  const wrong = [];
  const name = (el) => `<${el.tagName.toLowerCase()}> ${(el.innerText || el.name || el.id || "").trim().slice(0, 40)}`;
  const visible = (el) => el.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && el.getClientRects().length > 0;

  // Contrast: WCAG 2.2, 1.4.3 and 1.4.11
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data);
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (a, b) => {
    const [hi, lo] = [light(a), light(b)].sort((x, y) => y - x);
    return (hi + 0.05) / (lo + 0.05);
  };
  const ground = (el) => {
    for (let at = el; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba(getComputedStyle(document.documentElement).colorScheme === "dark" ? "#121212" : "#fff");
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !visible(el) || el.closest("svg, option, script, .skip")) continue;
    const style = getComputedStyle(el);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const found = ratio(rgba(style.color), ground(el));
    if (found < least) wrong.push(`contrast ${found.toFixed(2)} of ${name(el)}`);
  }
  for (const el of document.querySelectorAll("input:not([type=hidden], [type=checkbox]), select, textarea")) {
    if (visible(el) && ratio(rgba(getComputedStyle(el).borderTopColor), ground(el.parentElement)) < 3) wrong.push(`the edge of ${name(el)} is hard to see`);
  }

  // Names, sizes and order
  for (const el of document.querySelectorAll("a, button, input:not([type=hidden]), select, textarea, summary, iframe, [tabindex='0']")) {
    if (!visible(el) || el.closest(".skip")) continue;
    const labelled = (el.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id)?.textContent || "").join("");
    const said = el.getAttribute("aria-label") || labelled || Array.from(el.labels || [], (one) => one.innerText).join("") || el.innerText || el.title;
    if (!said || !said.trim()) wrong.push(`${name(el)} has no name`);
    const box = el.getBoundingClientRect();
    if (el.matches("button, input, select, .button") && Math.min(box.width, box.height) < 24 && el.type !== "checkbox") wrong.push(`${name(el)} is too small to hit`);
    if (el.tabIndex > 0) wrong.push(`${name(el)} jumps the order`);
  }
  for (const el of document.querySelectorAll("[aria-hidden=true] a, [aria-hidden=true] button")) wrong.push(`${name(el)} is hidden and can be focused`);
  if (document.scrollingElement.scrollWidth > document.documentElement.clientWidth) wrong.push(`the page is ${document.scrollingElement.scrollWidth} px wide`);
  return wrong;
}
