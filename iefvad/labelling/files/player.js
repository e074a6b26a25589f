"use strict";

// Plays a video by its file where the browser can, and by single pictures of the server where it cannot.

class Player {
  constructor(video, still, onTime, onTrouble) {
    this.video = video;
    this.still = still;
    this.onTime = onTime;
    this.onTrouble = onTrouble;
    this.number = -1;
    this.end = 0;
    this.frame = 0.04;
    this.byFrames = false;
    this.playing = false;
    this.speed = 1;
    this.clock = 0;
    this.wanted = null; // time of the picture to ask for next
    this.loading = false;
    this.load = 0; // number of the video's opening: answers for an earlier one are late
    video.addEventListener("timeupdate", () => this.report());
    video.addEventListener("seeked", () => this.report());
    video.addEventListener("ended", () => this.pause());
    video.addEventListener("error", () => {
      if (!this.byFrames && this.number >= 0) this.useFrames();
    });
    still.addEventListener("load", () => this.shown(true));
    still.addEventListener("error", () => this.shown(false));
  }

  open(number, facts) {
    this.pause();
    this.load += 1;
    this.number = number;
    this.end = facts.end;
    this.frame = 1 / facts.rate;
    this.clock = 0;
    this.wanted = null;
    this.loading = false;
    this.byFrames = !facts.browser;
    this.video.hidden = this.byFrames;
    this.still.hidden = !this.byFrames;
    this.video.removeAttribute("src");
    this.still.removeAttribute("src");
    if (this.byFrames) {
      this.video.load();
      this.seek(0);
    } else {
      this.video.src = `videos/${number}/file`;
      this.video.playbackRate = this.speed;
    }
    this.report();
  }

  close() {
    this.pause();
    this.number = -1;
    this.end = 0;
    this.video.hidden = this.still.hidden = true;
    this.video.removeAttribute("src");
    this.still.removeAttribute("src");
    this.video.load();
  }

  useFrames() {
    const time = this.time();
    const playing = this.playing;
    this.byFrames = true;
    this.video.hidden = true;
    this.still.hidden = false;
    this.playing = false;
    this.video.removeAttribute("src");
    this.seek(time);
    if (playing) this.play();
  }

  time() {
    return this.byFrames ? this.clock : Math.min(this.video.currentTime || 0, this.end);
  }

  seek(seconds) {
    const time = Math.min(Math.max(seconds, 0), Math.max(this.end - this.frame / 2, 0));
    if (this.byFrames) {
      this.clock = time;
      this.last = performance.now();
      this.ask(time);
    } else this.video.currentTime = time;
    this.report();
  }

  setSpeed(speed) {
    this.speed = speed;
    this.video.playbackRate = speed;
  }

  play() {
    if (this.number < 0) return;
    if (this.time() >= this.end - this.frame) this.seek(0);
    this.playing = true;
    if (this.byFrames) {
      this.last = performance.now();
      this.ask(this.clock);
    } else this.video.play().catch(() => this.pause());
    const tick = () => {
      if (!this.playing) return;
      this.report();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    this.report();
  }

  pause() {
    this.playing = false;
    this.video.pause();
    this.report();
  }

  // One picture is asked for at a time; the newest wish comes next.
  ask(time) {
    this.wanted = time;
    if (this.loading) return;
    this.loading = true;
    this.wanted = null;
    this.asked = this.load;
    this.still.src = `videos/${this.number}/frame.jpg?t=${time.toFixed(4)}`;
  }

  shown(good) {
    if (!this.byFrames || this.asked !== this.load) return;
    this.loading = false;
    this.onTrouble(good ? "" : "This picture cannot be decoded.");
    if (this.wanted !== null) return this.ask(this.wanted);
    if (!this.playing) return;
    const now = performance.now();
    this.clock += Math.max(((now - this.last) / 1000) * this.speed, this.frame);
    this.last = now;
    if (this.clock >= this.end - this.frame / 2) {
      this.clock = Math.max(this.end - this.frame / 2, 0);
      this.pause();
      this.ask(this.clock);
    } else if (this.clock > 0) {
      const wait = Math.max(0, 1000 * this.frame / this.speed - 5);
      setTimeout(() => this.playing && this.ask(this.clock), Math.min(wait, 100));
    }
  }

  report() {
    this.onTime(this.time(), this.playing);
  }
}
