// --- the rollouts

function mean(values) { return values.reduce((a, b) => a + b, 0) / Math.max(1, values.length); }

// Of the reports as the policy wrote them: an edited copy says nothing about it.
function totals(study) { return study.reports.filter((report) => !report.edited && report.total !== null).map((report) => report.total); }

const STUDY_ORDERS = {
  drawn: () => 0,
  low: (a, b) => mean(totals(a)) - mean(totals(b)),
  spread: (a, b) => width(b) - width(a),
};

function width(study) { const known = totals(study); return known.length ? Math.max(...known) - Math.min(...known) : -1; }

function words(text) { return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || []; }

function reportText(text, reference, mark) {
  const paragraph = element("p", { class: "report" });
  if (!mark) { paragraph.append(text || "(empty)"); return paragraph; }
  const known = new Set(words(reference));
  for (const piece of text.split(/(\s+)/)) {
    const extra = words(piece).some((word) => !known.has(word));
    paragraph.append(extra ? element("span", { class: "extra" }, piece) : piece);
  }
  return paragraph;
}

function advantageBar(value, most) {
  const reach = most || 1, x = (50 * value) / reach;
  return shape("svg", { class: "advantage", viewBox: "-52 0 104 12", preserveAspectRatio: "none", role: "img",
    "aria-label": `advantage ${fixed(value, true)}` },
    shape("rect", { class: value < 0 ? "down" : "up", x: Math.min(0, x), width: Math.abs(x), y: 2, height: 8 }),
    shape("line", { class: "zero", x1: 0, x2: 0, y1: 0, y2: 12, "vector-effect": "non-scaling-stroke" }));
}

function valueRow(name, value, best) {
  return element("div", best ? { class: "best" } : {}, element("dt", {}, name), element("dd", {}, (best ? "★ " : "") + fixed(value)));
}

// The largest of the known values, if they differ: the best of equals is none.
function best(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length > 1 && Math.max(...known) > Math.min(...known) ? Math.max(...known) : null;
}

function editedLine(report) {
  if (!report.edited) return [];
  const badge = element("span", { class: "badge edited", title: report.edited }, "edited");
  return [element("p", { class: "edit" }, badge, ` ${report.edited}`)];
}

function reportColumn(report, study, options) {
  const { rollouts } = data;
  const most = Math.max(...study.reports.map((r) => Math.abs(r.advantage)));
  const top = best(study.reports.map((r) => r.total));
  const values = element("dl", { class: "values" }, valueRow("Total reward", report.total, top !== null && report.total === top));
  rollouts.labels.forEach((_, i) => {
    const winner = best(study.reports.map((r) => r.parts[i]));
    values.append(valueRow(rollouts.labels[i], report.parts[i], winner !== null && report.parts[i] === winner));
  });
  values.append(valueRow("tokens", report.tokens, false));
  if (report.truncated) values.append(element("div", {}, element("dt", {}, "cut at the token limit"), element("dd", {}, "yes")));
  return element("div", { class: top !== null && report.total === top ? "first" : "" },
    element("p", { class: "head" }, element("strong", {}, `Report ${report.number}`), element("span", { class: "muted" }, `adv. ${fixed(report.advantage, true)}`)),
    advantageBar(report.advantage, most), ...editedLine(report), reportText(report.text, study.reference, options.mark), values);
}

function studyCard(study, options) {
  const pictures = element("div", { class: "pictures" });
  for (const uri of data.rollouts.images[study.id] || []) pictures.append(element("img", { src: uri, alt: `Image of study ${study.id}` }));
  if (!pictures.children.length) pictures.append(element("div", { class: "noimage" }, "no image here"));
  const kind = study.critical ? "critical" : "normal";
  const reports = [...study.reports];
  if (options.reports === "advantage") reports.sort((a, b) => b.advantage - a.advantage);
  const count = study.of > reports.length ? `${reports.length} of ${study.of} reports` : `${reports.length} reports`;
  return element("article", { class: "study", "data-kind": kind }, pictures, element("div", {},
    element("p", { class: "head" }, element("span", { class: "badge " + kind }, kind), element("strong", {}, `ε ${short(study.eps)}`),
      element("span", { class: "muted id" }, `${study.id} · ${count}`)),
    element("h4", {}, "Reference"), element("p", { class: "report" }, study.reference),
    element("div", { class: "reports" }, ...reports.map((report) => reportColumn(report, study, options)))));
}

function browseRollouts() {
  const { rollouts } = data, slider = document.getElementById("step");
  if (!slider) return;
  const by = (id) => document.getElementById(id);
  slider.max = rollouts.steps.length - 1;
  const redraw = () => {
    const step = rollouts.steps[Number(slider.value)], kind = document.querySelector('input[name="kind"]:checked').value;
    const options = { reports: by("report-order").value, mark: by("mark").checked };
    const chosen = step.studies.filter((study) => kind === "all" || study.critical === (kind === "critical"));
    chosen.sort(STUDY_ORDERS[by("study-order").value]);
    by("step-shown").textContent = `${short(step.step)} of ${short(rollouts.steps.at(-1).step)}`;
    slider.setAttribute("aria-valuetext", `step ${step.step}`);
    const left = step.of > step.studies.length ? `, of ${step.of} in the step` : "";
    by("browser-count").textContent = `${chosen.length} of ${step.studies.length} studies shown here${left}.`;
    by("studies").replaceChildren(...chosen.map((study) => studyCard(study, options)));
  };
  const move = (by) => { slider.value = Number(slider.value) + by; redraw(); };
  by("step-back").addEventListener("click", () => move(-1));
  by("step-on").addEventListener("click", () => move(1));
  by("browser").addEventListener("input", redraw);
  redraw();
}

// --- start

document.querySelectorAll("figure.chart").forEach((figure) => plots.push(new Plot(figure)));
const smoothing = document.getElementById("smoothing");
if (smoothing) smoothing.addEventListener("input", () => {
  state.smoothing = Number(smoothing.value);
  smoothing.nextElementSibling.textContent = state.smoothing ? state.smoothing.toFixed(2) : "off";
  plots.forEach((plot) => plot.draw());
});
browseRollouts();
