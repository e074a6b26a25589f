"use strict";

// The track with the marks: a click seeks, a drag marks an interval, a drag at an edge moves it.

class Track {
  // on: { seek(seconds), add(start, end), change(mark, start, end), choose(mark) }
  constructor(element, on) {
    this.element = element;
    this.on = on;
    this.end = 0;
    this.marks = [];
    this.tones = new Map();
    this.drag = null;
    this.line = document.createElement("div");
    this.line.className = "head-line";
    this.box = document.createElement("div");
    this.box.className = "pending";
    this.box.hidden = true;
    element.append(this.box, this.line);
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("pointercancel", () => this.cancel());
  }

  seconds(event) {
    const box = this.element.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * this.end;
  }

  place(element, start, end) {
    const total = this.end || 1;
    element.style.left = `${(100 * start) / total}%`;
    element.style.width = `${(100 * (end - start)) / total}%`;
  }

  show(marks, tones, chosen, end) {
    if (this.drag) return; // drawn again when the drag is over
    this.end = end;
    this.marks = marks;
    for (const old of this.element.querySelectorAll(".mark")) old.remove();
    for (const mark of marks) {
      const button = document.createElement("button");
      button.className = `mark tone${tones.get(mark.class) || 0}${mark.id === chosen ? " chosen" : ""}`;
      button.textContent = mark.class;
      button.setAttribute("aria-label", `${mark.class}, ${mark.start.toFixed(2)} to ${mark.end.toFixed(2)} seconds`);
      button.setAttribute("aria-pressed", String(mark.id === chosen));
      button.dataset.id = mark.id;
      button.append(document.createElement("i"), document.createElement("i"));
      button.addEventListener("click", (event) => event.detail === 0 && this.on.choose(mark)); // by the keyboard
      this.place(button, mark.start, mark.end);
      this.element.append(button);
    }
  }

  showTime(seconds, from) {
    this.line.style.left = `${(100 * seconds) / (this.end || 1)}%`;
    if (this.drag) return;
    this.box.hidden = from === null;
    if (from !== null) this.place(this.box, Math.min(from, seconds), Math.max(from, seconds));
  }

  down(event) {
    if (event.button !== 0 || !this.end) return;
    const button = event.target.closest(".mark");
    const mark = button && this.marks.find((one) => String(one.id) === button.dataset.id);
    const edge = event.target.tagName === "I" ? (event.target === button.querySelector("i") ? "start" : "end") : null;
    this.drag = { mark, edge, button, from: this.seconds(event), x: event.clientX, moved: false };
    this.element.setPointerCapture(event.pointerId);
  }

  move(event) {
    const drag = this.drag;
    if (!drag) return;
    drag.moved = drag.moved || Math.abs(event.clientX - drag.x) > 3;
    if (!drag.moved) return;
    const [start, end] = this.interval(event);
    if (drag.mark && drag.edge) this.place(drag.button, start, end);
    else if (!drag.mark) {
      this.box.hidden = false;
      this.place(this.box, start, end);
    }
    if (drag.edge || !drag.mark) this.on.seek(this.seconds(event));
  }

  interval(event) {
    const { mark, edge, from } = this.drag;
    const now = this.seconds(event);
    const other = mark && edge ? (edge === "start" ? mark.end : mark.start) : from;
    return [Math.min(now, other), Math.max(now, other)];
  }

  up(event) {
    const drag = this.drag;
    if (!drag) return;
    const [start, end] = this.interval(event);
    this.cancel();
    if (!drag.moved) {
      if (drag.mark) this.on.choose(drag.mark);
      this.on.seek(drag.from);
    } else if (drag.mark && drag.edge) this.on.change(drag.mark, start, end);
    else if (!drag.mark) this.on.add(start, end);
  }

  cancel() {
    this.drag = null;
    this.box.hidden = true;
  }
}
