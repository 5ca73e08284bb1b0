// The page that asks: is this class shown in this segment?

const QUICK = 150; // milliseconds in which nobody can have seen a new question
const LONG = 20000; // milliseconds without a connection, after which the page says what to do
const FEW = 20; // classes, all of which are listed
const WORDS = { yes: "yes", no: "no", skip: "skipped" };

class Rater {
  constructor(root) {
    this.root = root;
    this.find = (selector) => root.querySelector(selector);
    this.player = new Player(root);
    this.help = this.find("dialog");
    this.question = this.next = this.progress = null;
    this.answered = []; // the questions answered here, the last one at the end
    this.queue = new Queue({
      confirmed: (item, value) => this.confirmed(item, value),
      refused: (item, answer) => this.refused(item, answer),
      trouble: (answer, time) => this.trouble(answer, time),
      recovered: () => this.recovered(),
    });
    this.listen();
    this.queue.send();
    this.poll();
  }

  listen() {
    const actions = {
      y: () => this.answer("yes"),
      n: () => this.answer("no"),
      s: () => this.answer("skip"),
      u: () => this.undo(),
      " ": () => this.player.togglePause(),
      c: () => this.player.toggleAround(),
      m: () => this.player.toggleSound(),
      o: () => this.player.openLink(),
      d: toggleTheme,
      "?": () => this.help.showModal(),
    };
    for (const button of this.root.querySelectorAll("button[data-key]")) {
      button.addEventListener("click", (event) => {
        if (event.detail) button.blur(); // so that the space bar does not press it again
        actions[button.dataset.key]();
      });
    }
    this.find(".help").addEventListener("click", actions["?"]);
    this.find("dialog .close").addEventListener("click", () => this.help.close());
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || this.help.open) return;
      if ((event.key === " " || event.key === "Enter") && event.target.matches("button, a")) return;
      const action = actions[event.key.toLowerCase()];
      if (!action) return;
      event.preventDefault();
      action();
    });
    document.addEventListener("visibilitychange", () => {
      this.player.update();
      if (!document.hidden) this.poll();
    });
    addEventListener("focus", () => this.poll());
  }

  answer(verdict) {
    const { question } = this;
    if (!question || performance.now() - this.asked < QUICK) return;
    this.flash(verdict);
    this.answered.push(question);
    this.queue.add({ path: "answer", id: question.id, verdict, text: `${question.name}, ${this.where(question)}: ${WORDS[verdict]}` });
    this.show(this.next, null);
    this.tellQueue();
  }

  // The button shows for a moment that its key was pressed.
  flash(name) {
    const button = this.find(`.answers .${name}`);
    button.classList.add("pressed");
    setTimeout(() => button.classList.remove("pressed"), 200);
  }

  get undoable() {
    const last = this.queue.items.at(-1);
    if (!last) return this.progress?.undoable ?? null;
    return last.verdict ? last.id : null;
  }

  undo() {
    const id = this.undoable;
    if (id === null) return;
    const question = this.answered.at(-1)?.id === id ? this.answered.pop() : null;
    this.queue.add({ path: "undo", id, text: "" });
    if (question) this.show(question, this.question ?? this.next);
    this.tellQueue();
  }

  confirmed(item, value) {
    if (value.holds === false && !item.again) {
      this.say(item.verdict ? "This question was answered in another window, whose answer is kept." : "There was nothing to take back.");
    } else this.say(item.verdict ? `Saved: ${item.text}` : "Taken back.");
    this.adopt(value);
  }

  refused(item, answer) {
    this.say(`Not saved: ${answer.text}`, "waiting");
    this.poll();
  }

  // Shows what the server has, unless answers are on their way to it.
  adopt({ question, next, progress }) {
    this.progress = progress;
    if (this.queue.isEmpty) this.show(question, next);
    else {
      if (!this.question && next && !this.queue.items.some((item) => item.id === next.id)) this.show(next, null);
      this.tellQueue();
    }
    this.showProgress();
    this.pollLater();
  }

  show(question, next) {
    const isNew = question?.id !== this.question?.id;
    this.question = question;
    this.next = next;
    if (isNew) this.asked = performance.now();
    this.player.show(question, next);
    const ended = !question && this.queue.isEmpty && this.progress;
    this.find(".question").hidden = !question;
    this.find(".screen").hidden = ended;
    this.find(".end").hidden = !ended;
    this.find(".answers").hidden = ended;
    if (!question && !ended) this.player.waiting.textContent = "Waiting for the next question…";
    else this.player.waiting.textContent = "Loading…";
    for (const button of this.root.querySelectorAll(".answers button")) button.disabled = !question;
    this.find(".undo").disabled = this.undoable === null;
    if (question && isNew) this.showQuestion(question);
    this.showClasses();
  }

  where({ video, start, end }) {
    const decimals = [start, end].every((time) => Number.isInteger(time)) ? 0 : 1;
    return `${video}, ${clock(start, decimals)} – ${clock(end, decimals)}`;
  }

  showQuestion(question) {
    this.find(".class").textContent = question.name;
    this.find(".where").textContent = this.where(question);
    const second = this.find(".second");
    const before = question.before ? ` The answer was ${WORDS[question.before]}.` : "";
    second.hidden = !question.second_look && !before && !question.note;
    second.textContent = `${question.second_look ? "A second look." : ""}${before} ${question.note}`.trim();
  }

  // Of many classes, those with answers, and the one that is asked about.
  showClasses() {
    const { classes } = this.progress ?? { classes: [] };
    const asked = this.question?.name;
    const shown = classes.filter(({ name, yes, no }) => classes.length <= FEW || yes || no || name === asked);
    const rows = shown.map(({ name, yes, no }) =>
      make("tr", { class: name === asked ? "asked" : null }, make("td", {}, name), make("td", { class: "number" }, number(yes)), make("td", { class: "number" }, number(no))));
    this.find(".classes tbody").replaceChildren(...rows);
    const others = classes.length - shown.length;
    this.find(".others").textContent = others ? `${number(others)} ${others === 1 ? "class has" : "classes have"} no answer yet.` : "";
  }

  showProgress() {
    const { progress } = this;
    const counts = [make("b", {}, number(progress.answered)), " answered"];
    if (progress.skipped) counts.push(`, ${number(progress.skipped)} skipped`);
    if (progress.remaining !== null) counts.push(`, ${number(progress.remaining)} left`);
    this.find(".counts").replaceChildren(...counts);
    document.title = `${progress.answered} answered – Rate segments`;
    this.find(".learning").hidden = !progress.learning;
    const { held_out: score } = progress;
    this.find(".held-out").textContent = score
      ? `Held-out score ${score.score.toFixed(3)} ± ${score.error.toFixed(3)} on ${number(score.answers)} random answers: ${score.metric}.`
      : "";
    for (const [selector, text] of [[".advice", progress.advice], [".end .why", progress.advice]]) {
      if (this.find(selector).textContent !== text) this.find(selector).textContent = text;
    }
    this.find(".notes").replaceChildren(...progress.notes.map((note) => make("li", {}, note)));
    this.showClasses();
  }

  say(text, state = "saved") {
    const line = this.find(".saved");
    line.textContent = text;
    line.dataset.state = state;
  }

  tellQueue() {
    const { length } = this.queue.items;
    this.find(".undo").disabled = this.undoable === null;
    if (length === 0) return;
    if (this.queue.failures) this.say(`Not saved yet: ${length} ${length === 1 ? "answer waits" : "answers wait"}.`, "waiting");
    else this.say("Saving…", "saving");
  }

  trouble(answer, time) {
    const { length } = this.queue.items;
    const waiting = length ? ` ${length} ${length === 1 ? "answer waits" : "answers wait"} in this window: leave it open.` : "";
    let text = "The connection is lost; trying again.";
    if (answer?.status === 403) {
      text = "The command was started anew. Open the address that it prints in this window.";
    } else if (answer) text = `The command reports a problem; trying again. ${answer.text}.`;
    else if (time > LONG) {
      text = "The connection has been lost for long. Is the command still running? Otherwise start it again, with --port " +
        `${location.port}, and open the address that it prints in this window.`;
    }
    const banner = this.find(".banner");
    if (banner.textContent !== text + waiting) banner.textContent = text + waiting;
    banner.hidden = false;
    this.tellQueue();
  }

  recovered() {
    this.find(".banner").hidden = true;
    this.player.reconnect([this.question, this.next]);
  }

  // Asks for the state now and then: it changes by learning, and by other windows.
  async poll() {
    clearTimeout(this.timer);
    const { version } = this.queue;
    let answer = null;
    try {
      answer = await request("state");
    } catch {
      // No connection.
    }
    if (!answer?.value) this.queue.fail(answer);
    else {
      if (this.queue.isEmpty) this.queue.recover();
      else this.queue.send();
      if (version === this.queue.version) this.adopt(answer.value);
    }
    this.pollLater();
  }

  pollLater() {
    const isSoon = this.queue.failures || this.progress?.learning;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), document.hidden ? 15000 : isSoon ? 1000 : 4000);
  }
}

startTheme();
new Rater(document.querySelector(".rate-page"));
