// Lines across pictures over time, one for each release and mark, with their texts; a list beside the picture has them in words.

// `over` covers the plot alone; its axis goes from `from` to `to`, in ms. `list` may be missing.
export async function drawMoments(over, list, from, to) {
  const response = await fetch(`/board/moments.json${location.search}`).catch(() => null);
  const found = response?.ok ? await response.json() : { moments: [], all: 0, note: null };
  over.querySelector(":scope > .moments")?.remove();
  const inside = found.moments.filter((one) => from <= one.at_ms && one.at_ms <= to);
  const lines = document.createElement("div");
  lines.className = "moments";
  lines.setAttribute("aria-hidden", "true");
  inside.forEach((one, place) => {
    const line = document.createElement("i");
    const share = (one.at_ms - from) / (to - from);
    line.className = `moment ${one.kind} row-${place % 3}${share > 0.7 ? " leftwards" : ""}`;
    line.style.left = `${100 * share}%`;
    line.append(Object.assign(document.createElement("span"), { textContent: one.text }));
    lines.append(line);
  });
  over.append(lines);
  list?.replaceChildren(...inside.map(inWords), ...notes(found));
}

function inWords(one) {
  const item = document.createElement("li");
  item.append(Object.assign(document.createElement("i"), { className: `key-of ${one.kind}` }), ` ${one.time}: ${one.text}`);
  return item;
}

function notes({ moments, all, note }) {
  const texts = [note, all > moments.length ? `the newest ${moments.length} of ${all}` : null].filter(Boolean);
  return texts.map((text) => Object.assign(document.createElement("li"), { className: "soft", textContent: text }));
}
