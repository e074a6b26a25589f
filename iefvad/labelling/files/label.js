"use strict";

// The page of labelling. The server has the marks; this page asks for changes and shows what the server answers.
// All text goes through textContent, so no name can become markup.

const find = (id) => document.getElementById(id);
const TONES = 9;

let state = { revision: -1, run: "", names: [], classes: [], sides: [], fixed: [], problems: [], sources: [] };
let videos = new Map(); // number → { version, normal, label, marks }
let current = -1;
let facts = null; // of the current video
let kind = null; // class of the next mark
let chosen = null; // id of the chosen mark
let pending = null; // start of a mark that has no end yet, in seconds
let undone = new Map(); // number → earlier labels, the latest last
let opening = 0;
let busy = Promise.resolve(); // changes go one after the other

const player = new Player(find("video"), find("still"), showTime, showTrouble);
const track = new Track(find("track"), {
  seek: (seconds) => player.seek(seconds),
  add: (start, end) => add(start, end),
  change: (mark, start, end) => changeMark(mark, { start, end }),
  choose: (mark) => choose(mark.id),
});

function make(parent, tag, style, text) {
  const element = document.createElement(tag);
  if (style) element.className = style;
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function clock(seconds) {
  const tenths = Math.floor(seconds * 100 + 0.5) / 100;
  const whole = Math.floor(tenths);
  const two = (number) => String(number).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}.${two(Math.round((tenths - whole) * 100))}`;
}

// Seconds from h:mm:ss.ss, m:ss or seconds; NaN for anything else.
function parsed(text) {
  const parts = text.trim().split(":");
  if (parts.length > 3 || parts.some((part) => !/^\d+(\.\d*)?$/.test(part.trim()))) return NaN;
  return parts.reduce((sum, part) => 60 * sum + Number(part), 0);
}

const tones = () => new Map(state.classes.map((name, number) => [name, number % TONES]));
const video = () => videos.get(current) || { version: 0, normal: false, label: null, marks: [] };
const copyOf = (labels) => ({ normal: labels.normal, marks: labels.marks.map((mark) => ({ start: mark.start, end: mark.end, class: mark.class })) });

// Talking to the server

function link(good, text) {
  find("link").className = `link ${good ? "on" : "off"}`;
  find("link").textContent = text;
}

function tell(text) {
  find("message").textContent = text;
  find("message").hidden = !text;
}

function take(news) {
  const fresh = news.run !== state.run;
  state = { ...state, ...news };
  if (fresh) videos = new Map();
  for (const [number, labels] of Object.entries(news.videos)) videos.set(Number(number), labels);
  if (!state.classes.includes(kind)) kind = state.classes[0] || null;
  show();
  if (fresh && (current < 0 || current >= state.names.length)) open(Math.max(nextUnlabelled(-1), 0));
}

async function look() {
  try {
    const answer = await fetch(`state?since=${state.revision}&run=${state.run}`);
    if (answer.status === 403) return link(false, "this page is of an earlier start: open the address that iefvad printed");
    if (answer.status === 200) take(await answer.json());
    link(true, "every change is saved");
  } catch {
    link(false, "no connection to iefvad: changes are not saved");
  }
}

function send(path, change) {
  const work = busy.then(async () => {
    try {
      const answer = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...change(), since: state.revision }),
      });
      const news = await answer.json();
      tell(news.error ? `Not saved: ${news.error}.` : "");
      if (news.videos) take(news);
      if (answer.ok) link(true, "every change is saved");
      return answer.ok;
    } catch {
      link(false, "no connection to iefvad: changes are not saved");
      tell("Not saved: there is no connection to iefvad.");
      return false;
    }
  });
  busy = work.catch(() => {});
  return work;
}

// Changes

async function change(wanted, keep = true) {
  const number = current;
  if (number < 0 || !facts) return false;
  const before = copyOf(video());
  const done = await send(`videos/${number}`, typeof wanted === "function" ? wanted : () => wanted);
  if (done && keep) {
    if (!undone.has(number)) undone.set(number, []);
    undone.get(number).push(before);
    showMarks();
  }
  return done;
}

async function add(start, end) {
  if (kind === null) return tell("Add a class first.");
  const known = new Set(video().marks.map((mark) => mark.id));
  if (await change({ do: "add", start, end, class: kind })) {
    const found = video().marks.find((mark) => !known.has(mark.id));
    if (found) choose(found.id);
  }
}

const was = (mark) => ({ start: mark.start, end: mark.end, class: mark.class });
const changeMark = (mark, to) => change({ do: "change", id: mark.id, was: was(mark), ...was(mark), ...to });
const deleteMark = (mark) => change({ do: "delete", id: mark.id, was: was(mark) });
const set = (labels, keep = true) => change(() => ({ do: "set", version: video().version, ...labels }), keep);

function wholeVideo() {
  if (kind === null) return tell("Add a class first.");
  if (facts) set({ normal: false, marks: [{ start: 0, end: facts.end, class: kind }] });
}

async function undo() {
  const earlier = undone.get(current) || [];
  if (earlier.length && (await set(earlier[earlier.length - 1], false))) {
    earlier.pop();
    showMarks();
  }
}

function startHere() {
  pending = player.time();
  find("pending").textContent = `A mark starts at ${clock(pending)}. Press o where it ends, Esc to forget it.`;
  showTime(player.time(), player.playing);
}

function forget() {
  pending = null;
  find("pending").textContent = "";
  showTime(player.time(), player.playing);
}

function endHere() {
  if (pending === null) {
    find("pending").textContent = "Press i where the mark starts, then o where it ends.";
    return;
  }
  const start = pending;
  forget();
  // The frame that is shown belongs to the mark.
  add(Math.min(start, player.time()), Math.max(start, player.time()) + (facts ? facts.rate ? 1 / facts.rate : 0 : 0));
}

async function addClass() {
  const name = find("class-new").value.trim();
  if (name && (await send("classes", () => ({ name })))) {
    kind = name;
    find("class-new").value = "";
    show();
  }
}

// Showing

function show() {
  showVideos();
  showClasses();
  showMarks();
  const done = state.names.filter((_, number) => (videos.get(number) || {}).label).length;
  find("progress").max = state.names.length || 1;
  find("progress").value = done;
  const sides = (side) => state.sides.filter((one) => one === side).length;
  find("progress-text").textContent = `${done} of ${state.names.length} labelled · ${sides("train")} for training · ${sides("test")} for testing`;
  find("note").textContent = state.note;
  find("folder").textContent = state.folder;
  find("hint").textContent = state.hint;
}

function showVideos() {
  const list = find("videos");
  while (list.children.length > state.names.length) list.lastChild.remove();
  state.names.forEach((name, number) => {
    let item = list.children[number];
    if (!item) {
      item = make(list, "li");
      const button = make(item, "button");
      make(button, "span", "sign");
      make(button, "span", "what");
      make(button, "small");
      button.addEventListener("click", () => open(number));
    }
    const [sign, what, small] = item.firstChild.children;
    const labels = videos.get(number) || {};
    const broken = state.problems[number];
    sign.textContent = broken ? "!" : labels.normal ? "✓" : labels.label ? "●" : "○";
    sign.className = `sign ${broken ? "broken" : labels.normal ? "normal" : labels.label ? "abnormal" : ""}`;
    sign.title = broken || labels.label || "not labelled";
    what.textContent = name;
    small.textContent = broken ? "cannot be labelled" : labels.label ? `${labels.label} · ${state.sides[number] || ""}` : "";
    item.firstChild.setAttribute("aria-current", String(number === current));
  });
}

function showClasses() {
  const box = find("class-list");
  const focused = box.contains(document.activeElement);
  box.replaceChildren();
  state.classes.forEach((name, number) => {
    const label = make(box, "label", `tone${number % TONES}`);
    const radio = make(label, "input");
    radio.type = "radio";
    radio.name = "class";
    radio.checked = name === kind;
    radio.addEventListener("change", () => (kind = name));
    make(label, "span", "", name);
    if (number < 9) make(label, "kbd", "", String(number + 1));
    if (focused && radio.checked) radio.focus();
  });
}

function showMarks() {
  if (current < 0) return;
  const labels = video();
  const badge = find("badge");
  badge.textContent = labels.label || "not labelled";
  badge.className = `badge ${labels.normal ? "normal" : labels.label ? "abnormal" : ""}`;
  if (!labels.marks.some((mark) => mark.id === chosen)) chosen = null;
  track.show(labels.marks, tones(), chosen, facts ? facts.end : 0);
  showTime(player.time(), player.playing);
  const body = find("marks").tBodies[0];
  const signature = JSON.stringify([current, labels.marks, state.classes]);
  if (body.dataset.signature !== signature) {
    const focus = document.activeElement && body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    body.dataset.signature = signature;
    body.replaceChildren();
    labels.marks.forEach((mark) => showRow(body, mark));
    const again = focus && [...body.querySelectorAll("[data-key]")].find((one) => one.dataset.key === focus);
    if (again) again.focus();
  }
  for (const row of body.rows) row.classList.toggle("chosen", Number(row.dataset.id) === chosen);
  find("marks").hidden = !labels.marks.length;
  find("marks-none").hidden = labels.marks.length > 0 || labels.normal;
  find("undo").disabled = !(undone.get(current) || []).length;
  find("side").value = state.fixed[current] || "";
  find("source").textContent = `source: ${state.sources[current]}`;
}

function showRow(body, mark) {
  const row = make(body, "tr");
  row.dataset.id = mark.id;
  const select = make(make(row, "td", "text"), "select");
  for (const name of state.classes) make(select, "option", "", name);
  select.value = mark.class;
  select.setAttribute("aria-label", "class of the mark");
  select.addEventListener("change", () => changeMark(mark, { class: select.value }));
  select.dataset.key = `${mark.id} class`;
  for (const side of ["start", "end"]) {
    const input = make(make(row, "td"), "input");
    input.value = clock(mark[side]);
    input.setAttribute("aria-label", `${side} of the mark`);
    input.dataset.key = `${mark.id} ${side}`;
    input.addEventListener("change", async () => {
      const seconds = parsed(input.value);
      if (Number.isNaN(seconds)) tell(`Not saved: ${input.value} is not a time such as 0:01:02.50.`);
      else await changeMark(mark, { [side]: seconds });
      input.value = clock(mark[side]); // a saved change draws the row again
    });
  }
  make(row, "td", "", `${mark.first} – ${mark.last - 1}`);
  const last = make(row, "td");
  const go = make(last, "button", "", "Show");
  go.addEventListener("click", () => {
    choose(mark.id);
    player.seek(mark.start);
  });
  const away = make(last, "button", "", "Delete");
  away.addEventListener("click", () => deleteMark(mark));
  go.dataset.key = `${mark.id} show`;
  away.dataset.key = `${mark.id} delete`;
}

function showTime(time, playing) {
  find("clock").textContent = facts ? `${clock(time)} of ${clock(facts.end)}` : "";
  find("play").textContent = playing ? "Pause" : "Play";
  track.showTime(time, pending);
}

function showTrouble(text) {
  find("trouble").textContent = text;
  find("trouble").hidden = !text;
}

function choose(id) {
  chosen = id;
  showMarks();
}

async function open(number) {
  if (number < 0 || number >= state.names.length) return;
  const mine = ++opening;
  current = number;
  facts = null;
  chosen = null;
  pending = null;
  find("pending").textContent = "";
  player.close();
  tell("");
  find("name").textContent = state.names[number];
  showTrouble("The video is being read …");
  show();
  find("videos").children[number].scrollIntoView({ block: "nearest" });
  let found = null;
  try {
    found = await (await fetch(`videos/${number}`)).json();
  } catch {
    found = { error: "there is no connection to iefvad" };
  }
  if (mine !== opening) return;
  if (found.error) {
    state.problems[number] = found.error;
    showTrouble(`This video cannot be labelled: ${found.error}`);
  } else {
    facts = found;
    showTrouble("");
    player.open(number, found);
  }
  for (const id of ["play", "back", "on", "frame-back", "frame-on", "start", "end", "whole", "normal"]) find(id).disabled = !facts;
  show();
}

function nextUnlabelled(from) {
  const count = state.names.length;
  for (let step = 1; step <= count; step += 1) {
    const number = (((from + step) % count) + count) % count;
    if (!(videos.get(number) || {}).label && !state.problems[number]) return number;
  }
  return -1;
}

function next() {
  const number = nextUnlabelled(current);
  if (number < 0) tell(`All videos are labelled. End the command with Ctrl-C, then: ${state.hint}`);
  else open(number);
}

// Buttons and keys

const toggle = () => (player.playing ? player.pause() : player.play());
const step = (seconds) => {
  player.pause();
  player.seek(player.time() + seconds);
};

const ACTIONS = {
  play: toggle,
  back: () => step(-1),
  on: () => step(1),
  "frame-back": () => facts && step(-1 / facts.rate),
  "frame-on": () => facts && step(1 / facts.rate),
  start: startHere,
  end: endHere,
  whole: wholeVideo,
  normal: () => set({ normal: true, marks: [] }),
  undo,
  next,
  "class-add": addClass,
};
for (const [id, action] of Object.entries(ACTIONS)) find(id).addEventListener("click", () => action());
find("speed").addEventListener("change", () => player.setSpeed(Number(find("speed").value)));
find("class-new").addEventListener("keydown", (event) => event.key === "Enter" && addClass());
find("side").addEventListener("change", () => {
  const side = find("side").value || null;
  send(`videos/${current}/side`, () => ({ side }));
});

const mark = () => video().marks.find((one) => one.id === chosen);
const KEYS = {
  " ": toggle,
  i: startHere,
  o: endHere,
  w: wholeVideo,
  n: ACTIONS.normal,
  u: undo,
  j: next,
  k: () => open(current - 1),
  ",": ACTIONS["frame-back"],
  ".": ACTIONS["frame-on"],
  Escape: forget,
  "[": () => mark() && changeMark(mark(), { start: player.time() }),
  "]": () => mark() && changeMark(mark(), { end: player.time() + 1 / facts.rate }),
  Delete: () => mark() && deleteMark(mark()),
  Backspace: () => mark() && deleteMark(mark()),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  const typing = at.matches("input:not([type=radio]), select, textarea");
  if (typing && event.key !== "Escape") return;
  if (at.matches("button, summary") && (event.key === " " || event.key === "Enter")) return;
  if (at.matches("input[type=radio]") && event.key.startsWith("Arrow")) return;
  let action = KEYS[event.key];
  if (/^[1-9]$/.test(event.key) && state.classes[event.key - 1]) {
    action = () => {
      kind = state.classes[event.key - 1];
      showClasses();
    };
  }
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    action = () => step((event.key === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? 10 : 1));
  }
  const needs = "iownu,.[]".includes(event.key) || event.key === " ";
  if (!action || (needs && !facts)) return;
  event.preventDefault();
  if (event.repeat && !event.key.startsWith("Arrow") && !",.".includes(event.key)) return;
  action();
});

look();
setInterval(look, 2000);
