"use strict";

// Shows what /events sends. All text goes through textContent, so no name can become markup.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 480;
const HEIGHT = 76;
const PAD = 3;
const WORDS = { connecting: "connecting", live: "live", waiting: "connecting again", lost: "lost", ended: "ended" };

let run = null;
let keep = 240;
let keepAlarms = 50;
let cameras = [];
let alarms = new Map();
let total = 0;

const find = (id) => document.getElementById(id);

function make(parent, tag, style, text) {
  const element = document.createElement(tag);
  if (style) element.className = style;
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function draw(parent, tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

const height = (score) => HEIGHT - PAD - Math.min(Math.max(score, 0), 1) * (HEIGHT - 2 * PAD);

function newCamera(entry) {
  const box = make(find("camera-list"), "article", "camera");
  const head = make(box, "div", "camera-head");
  make(head, "h3", "", entry.name);
  const score = make(head, "b", "", "–");
  const line = draw(box, "svg", { class: "line", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const foot = make(box, "p", "facts");
  const state = make(foot, "span", "state");
  const facts = make(foot, "span");
  return { box, state, score, line, facts, name: entry.name, threshold: entry.threshold, data: {}, scores: [] };
}

function showCamera(camera) {
  const data = camera.data;
  const flagged = data.state === "live" && data.score !== null && data.score >= camera.threshold;
  camera.box.classList.toggle("flagged", flagged);
  camera.box.classList.toggle("silent", data.state !== "live");
  camera.state.className = `state ${data.state}`;
  camera.state.textContent = WORDS[data.state] || data.state;
  camera.score.textContent = data.score === null ? "–" : data.score.toFixed(2);
  const facts = [];
  if (data.fps) facts.push(`${data.fps} frames/s`);
  if (data.delay !== null) facts.push(`delay ${data.delay} ms`);
  facts.push(`${data.dropped} dropped`);
  if (data.lost) facts.push(`connection lost ${data.lost}×`);
  if (data.trouble) facts.push(data.trouble);
  camera.facts.textContent = facts.join(" · ");
}

function showLine(camera) {
  const { line, scores, threshold } = camera;
  line.replaceChildren();
  const step = WIDTH / keep;
  const first = keep - scores.length;
  draw(line, "line", { class: "axis", x1: 0, x2: WIDTH, y1: height(0), y2: height(0) });
  let points = [];
  const lines = [];
  let over = null; // the stretch at or above the threshold that goes on: its rectangle, and its first segment
  scores.forEach(([start, end, score], index) => {
    const x = (first + index) * step;
    if (score < threshold) over = null;
    else {
      over = over || { index, box: draw(line, "rect", { class: "over", x, y: 0, height: HEIGHT }) };
      over.box.setAttribute("width", ((index - over.index + 1) * step).toFixed(2));
    }
    // Lost time breaks the line.
    if (index && start - scores[index - 1][1] > 2 * (end - start) + 0.5) {
      lines.push(points);
      points = [];
    }
    points.push(`${x.toFixed(1)},${height(score).toFixed(1)}`, `${(x + step).toFixed(1)},${height(score).toFixed(1)}`);
  });
  lines.push(points);
  const y = height(threshold);
  draw(line, "line", { class: "threshold", x1: 0, x2: WIDTH, y1: y, y2: y });
  for (const part of lines) if (part.length) draw(line, "polyline", { class: "score", points: part.join(" ") });
  const last = scores.length ? scores[scores.length - 1][2].toFixed(2) : "none";
  line.setAttribute("aria-label", `Scores of ${camera.name}, latest ${last}`);
}

function showAlarm(alarm) {
  const known = alarms.get(alarm.id);
  const box = known ? known.box : document.createElement("figure");
  box.replaceChildren();
  box.className = alarm.over ? "" : "open";
  const name = cameras[alarm.camera] ? cameras[alarm.camera].name : "";
  if (alarm.picture) {
    const image = make(box, "img");
    image.alt = `Picture of alarm on ${name}`;
    image.src = `pictures/${alarm.id}.jpg?${alarm.over ? "end" : "start"}`;
  }
  const caption = make(box, "figcaption");
  make(caption, "b", "", name);
  const day = new Date(alarm.began * 1000).toLocaleString();
  const length = alarm.over ? `${(alarm.end - alarm.start).toFixed(1)} s` : "going on";
  make(caption, "span", "", ` · ${day} · ${clock(alarm.start)} · ${length} · peak ${alarm.peak.toFixed(2)}`);
  if (!known) find("alarm-list").prepend(box);
  alarms.set(alarm.id, { ...alarm, box });
  while (alarms.size > keepAlarms) {
    const oldest = Math.min(...alarms.keys());
    alarms.get(oldest).box.remove();
    alarms.delete(oldest);
  }
}

function showTiles() {
  const live = cameras.filter((camera) => camera.data.state === "live");
  const delays = live.map((camera) => camera.data.delay).filter((delay) => delay !== null && delay !== undefined);
  find("tile-live").textContent = `${live.length} of ${cameras.length}`;
  find("tile-alarms").textContent = total;
  find("tile-delay").textContent = delays.length ? `${Math.max(...delays)} ms` : "–";
  find("tile-dropped").textContent = cameras.reduce((sum, camera) => sum + (camera.data.dropped || 0), 0);
  find("alarms-none").hidden = alarms.size > 0;
}

function show(message) {
  if (message.run !== undefined) {
    run = message.run;
    keep = message.keep;
    keepAlarms = message.keep_alarms;
    find("camera-list").replaceChildren();
    find("alarm-list").replaceChildren();
    alarms = new Map();
    cameras = message.cameras.map(newCamera);
  }
  for (const { camera: number, scores, ...data } of message.cameras) {
    const camera = cameras[number];
    Object.assign(camera.data, data);
    if (scores) camera.scores = camera.scores.concat(scores).slice(-keep);
    showCamera(camera);
    if (scores || message.run !== undefined) showLine(camera);
  }
  total = message.total;
  message.alarms.sort((a, b) => a.id - b.id).forEach(showAlarm);
  showTiles();
}

function link(style, text) {
  find("link").className = `link ${style}`;
  find("link").textContent = text;
}

function listen() {
  const source = new EventSource("events");
  source.onopen = () => link("on", "connected");
  source.onmessage = (event) => show(JSON.parse(event.data));
  source.onerror = () => {
    link("off", "no connection to iefvad: trying again");
    // The browser itself tries again after a broken connection, but not after an error of the server.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}

listen();
