// Plays the part of a video that a question is about, in a loop: the file, its frames, or a link.

const AROUND = 3; // seconds before and after the part, on demand
const PATIENCE = 8000; // milliseconds without a picture, after which frames of a file are shown instead
const FAR = 30000; // likewise of a file elsewhere, whose link is shown then
const stillMotion = matchMedia("(prefers-reduced-motion: reduce)");

class LostError extends Error {}

// A video element that repeats a range of seconds. `fail` is called once if it shows no picture.
class VideoClip {
  constructor(source, offset, range, patience, fail) {
    this.offset = offset;
    this.patience = patience;
    this.range = range;
    this.fail = () => {
      if (!this.gone) fail();
      this.gone = true;
    };
    this.video = make("video", { playsinline: true, preload: "auto", tabindex: -1, "aria-label": "The segment" });
    this.video.muted = true;
    this.element = this.video;
    this.video.addEventListener("error", this.fail);
    this.video.addEventListener("loadedmetadata", () => {
      if (!this.video.videoWidth) return this.fail(); // only the sound can be played
      this.restart();
    });
    this.video.addEventListener("seeked", () => { this.ready = true; });
    this.video.addEventListener("ended", () => {
      this.restart();
      if (this.playing) this.start();
    });
    this.video.src = `${source}#t=${Math.max(0, range[0] + offset).toFixed(3)}`;
  }

  get time() {
    return this.ready ? this.video.currentTime - this.offset : this.range[0];
  }

  get isShowing() {
    return this.ready && this.video.readyState >= 2;
  }

  restart() {
    this.video.currentTime = Math.max(0, this.range[0] + this.offset);
  }

  setRange(range) {
    this.range = range;
    this.restart();
  }

  setSound(on) {
    this.video.muted = !on;
  }

  start() {
    this.playing = true;
    this.video.play().catch((error) => {
      if (error.name !== "NotAllowedError" || this.video.muted) return;
      this.video.muted = true; // a page may play sound only after it was clicked
      this.video.play().catch(() => {});
    });
  }

  stop() {
    this.playing = false;
    this.video.pause();
  }

  // Called for every picture of the screen while the clip is shown.
  tick() {
    const { time } = this;
    if (this.ready && !this.video.seeking && (time >= this.range[1] - 0.01 || time < this.range[0] - 0.5)) this.restart();
    if (this.isShowing || document.hidden) this.since = null;
    else if (performance.now() - (this.since ??= performance.now()) > this.patience) this.fail();
  }

  remove() {
    this.gone = true;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video.remove();
  }
}

// Frames that the server has decoded, shown as a loop. `fail` is called with an error if there are none.
class FramesClip {
  constructor(number, range, fail) {
    this.number = number;
    this.fail = fail;
    this.element = make("img", { alt: "The segment, as single frames" });
    this.setRange(range);
  }

  async setRange(range) {
    const [from, to] = range.map((seconds) => Math.round(Math.max(0, seconds) * 1000));
    this.range = range;
    this.images = null;
    let answer;
    try {
      answer = await fetch(`frames/${this.number}/${from}-${to}`);
    } catch {
      answer = null;
    }
    if (this.gone || this.range !== range) return;
    if (!answer) return this.fail(new LostError());
    if (!answer.ok) return this.fail(new Error((await answer.text()).trim()));
    const { fps, images } = await answer.json();
    const loaded = images.map((address) => Object.assign(new Image(), { src: address }));
    await Promise.all(loaded.map((image) => image.decode().catch(() => {})));
    if (this.gone || this.range !== range) return;
    this.fps = fps;
    this.images = images;
    this.place = 0;
    this.show();
  }

  get isShowing() {
    return Boolean(this.images);
  }

  get time() {
    return this.images ? this.range[0] + this.place : this.range[0];
  }

  show() {
    const address = this.images[Math.min(this.images.length - 1, Math.floor(this.place * this.fps))];
    if (this.element.src !== address) this.element.src = address;
  }

  setSound() {}

  start() {
    this.playing = true;
    this.before = null;
  }

  stop() {
    this.playing = false;
  }

  tick(now) {
    if (!this.images || !this.playing) return;
    this.place = (this.place + (now - (this.before ?? now)) / 1000) % (this.images.length / this.fps);
    this.before = now;
    this.show();
  }

  remove() {
    this.gone = true;
    this.element.remove();
  }
}

// What cannot be played in the page: a link, or a message.
class CardClip {
  constructor(range, text, page) {
    this.range = range;
    this.time = range[0];
    this.isShowing = true;
    this.element = make("div", { class: "card" }, make("p", {}, text));
    if (!page) return;
    this.link = make("a", { href: page, target: "_blank", rel: "noopener noreferrer" }, `Open at ${clock(range[0])}`);
    this.element.append(make("div", {}, this.link, " ", make("kbd", {}, "o")));
  }

  setRange() {}
  setSound() {}
  start() {}
  stop() {}
  tick() {}

  remove() {
    this.element.remove();
  }
}

// Shows the clip of one question while that of the next one is loaded.
class Player {
  constructor(root) {
    this.screen = root.querySelector(".screen");
    this.pictures = root.querySelector(".pictures");
    this.badge = root.querySelector(".badge");
    this.waiting = root.querySelector(".waiting");
    this.playButton = root.querySelector(".play");
    this.track = root.querySelector(".track");
    this.buttons = Object.fromEntries(["pause", "context", "sound"].map((name) => [name, root.querySelector(`.controls .${name}`)]));
    this.unplayable = new Set(); // numbers of files
    this.clips = new Map(); // by the id of the question
    this.question = null;
    this.around = false;
    this.sound = false;
    this.paused = stillMotion.matches;
    this.playButton.addEventListener("click", () => this.togglePause());
    const frame = (now) => {
      this.tick(now);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  get clip() {
    return this.question && this.clips.get(this.question.id);
  }

  get range() {
    const { start, end } = this.question;
    return this.around ? [Math.max(0, start - AROUND), end + AROUND] : [start, end];
  }

  // Shows a question, and loads what will be asked next.
  show(question, next) {
    if (question?.id !== this.question?.id) {
      this.question = question;
      this.around = false;
      this.paused = stillMotion.matches && this.paused;
    }
    for (const [id, clip] of this.clips) {
      if (id === question?.id || id === next?.id) continue;
      clip.remove();
      this.clips.delete(id);
    }
    for (const each of [question, next]) if (each && !this.clips.has(each.id)) this.load(each);
    this.update();
  }

  load(question, frames = false) {
    const { media } = question;
    const range = [question.start, question.end];
    const set = (clip) => {
      this.clips.get(question.id)?.remove();
      this.clips.set(question.id, clip);
      clip.element.classList.add("off");
      this.pictures.append(clip.element);
      if (question === this.question) this.update();
    };
    if (media.kind === "file" && media.plays && !frames && !this.unplayable.has(media.number)) {
      set(new VideoClip(`video/${media.number}`, media.offset, range, PATIENCE, () => this.load(question, true)));
    } else if (media.kind === "file") {
      const clip = new FramesClip(media.number, range, (error) => {
        const lost = error instanceof LostError;
        clip.lost = lost;
        if (!lost) set(new CardClip(range, `The video cannot be shown: ${error.message}`));
      });
      if (frames) clip.reason = media.number;
      set(clip);
    } else if (media.kind === "stream" && !frames) {
      set(new VideoClip(media.url, media.offset, range, FAR, () => this.load(question, true)));
    } else if (media.kind === "none") {
      set(new CardClip(range, "There is no file and no link of this video."));
    } else {
      set(new CardClip(range, `Watch ${clock(question.start)} to ${clock(question.end)} elsewhere.`, media.page));
    }
  }

  // Loads again what was not loaded while the connection was lost.
  reconnect(questions) {
    for (const question of questions) {
      const clip = question && this.clips.get(question.id);
      if (!clip?.lost) continue;
      clip.remove();
      this.clips.delete(question.id);
      this.load(question);
    }
  }

  update() {
    const { clip } = this;
    for (const other of this.clips.values()) {
      other.element.classList.toggle("off", other !== clip);
      if (other !== clip) other.stop();
    }
    this.screen.classList.toggle("around", this.around);
    this.track.hidden = !clip;
    this.buttons.pause.setAttribute("aria-pressed", this.paused);
    this.buttons.context.setAttribute("aria-pressed", this.around);
    this.buttons.sound.setAttribute("aria-pressed", this.sound);
    for (const button of Object.values(this.buttons)) button.disabled = !clip;
    this.playButton.hidden = !(clip && this.paused && !(clip instanceof CardClip));
    if (!clip) return;
    const [from, to] = this.range;
    const percent = (seconds) => `${clamp((100 * (seconds - from)) / (to - from), 0, 100)}%`;
    const part = this.track.querySelector(".part");
    part.style.left = percent(this.question.start);
    part.style.right = `${100 - parseFloat(percent(this.question.end))}%`;
    clip.setSound(this.sound);
    if (this.paused || document.hidden) clip.stop();
    else clip.start();
  }

  tick(now) {
    const { clip } = this;
    this.waiting.hidden = Boolean(clip?.isShowing);
    if (!clip) return;
    clip.tick(now);
    if (clip.isShowing && clip.reason !== undefined) this.unplayable.add(clip.reason);
    const [from, to] = this.range;
    this.track.querySelector(".head").style.left = `${clamp((100 * (clip.time - from)) / (to - from), 0, 100)}%`;
    const { start, end } = this.question;
    const place = !this.around ? "" : clip.time < start ? "before the segment" : clip.time >= end ? "after the segment" : "the segment";
    this.badge.hidden = !place;
    if (this.badge.textContent !== place) this.badge.textContent = place;
  }

  togglePause() {
    this.paused = !this.paused;
    this.update();
  }

  toggleAround() {
    if (!this.clip) return;
    this.around = !this.around;
    this.clip.setRange(this.range);
    this.update();
  }

  toggleSound() {
    this.sound = !this.sound;
    this.update();
  }

  openLink() {
    this.clip?.link?.click();
  }
}
