// Sends answers in order, again until the server has confirmed them; those that wait survive a reload.
//
// An answer names its question, and an undo the answer that it takes back: sent twice, they count once.

const QUEUE = "pyseg-rate-queue";
const TIMEOUT = 15000; // milliseconds

async function request(path, body) {
  const post = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, { ...post, signal: AbortSignal.timeout(TIMEOUT) });
  const text = await answer.text();
  return { status: answer.status, value: answer.ok ? JSON.parse(text) : null, text: text.trim() };
}

class Queue {
  // The handlers `confirmed`, `refused`, `trouble` and `recovered` are told what happens.
  constructor(handlers) {
    this.handlers = handlers;
    this.items = [];
    this.version = 0; // changes whenever the state on the server may have
    this.failures = 0;
    this.since = null; // when the first of the failures was
    try {
      this.items = JSON.parse(sessionStorage.getItem(QUEUE)) ?? [];
    } catch {
      // No storage: what waits does not survive a reload.
    }
    addEventListener("beforeunload", (event) => {
      if (this.items.length) event.preventDefault();
    });
  }

  get isEmpty() {
    return this.items.length === 0;
  }

  store() {
    this.version += 1;
    try {
      sessionStorage.setItem(QUEUE, JSON.stringify(this.items));
    } catch {
      // As above.
    }
  }

  add(item) {
    this.items.push(item);
    this.store();
    this.send();
  }

  async send() {
    if (this.sending || this.isEmpty) return;
    clearTimeout(this.timer);
    this.sending = true;
    const [item] = this.items;
    const { path, id, verdict } = item;
    let answer = null;
    try {
      answer = await request(path, verdict ? { id, verdict } : { id });
    } catch {
      // No connection, or no answer in time.
    }
    this.sending = false;
    const again = !answer || answer.status === 403 || answer.status >= 500;
    if (again) {
      item.again = true;
      this.fail(answer);
    } else {
      this.items.shift();
      this.store();
      this.recover();
      if (answer.value) this.handlers.confirmed(item, answer.value);
      else this.handlers.refused(item, answer);
    }
    this.sendLater(again);
  }

  sendLater(again) {
    if (this.isEmpty) return;
    if (!again) return this.send();
    this.timer = setTimeout(() => this.send(), Math.min(4000, 250 * 2 ** Math.min(this.failures, 5)));
  }

  // Notes that the server did not answer as it should.
  fail(answer) {
    this.failures += 1;
    this.since ??= performance.now();
    this.handlers.trouble(answer, performance.now() - this.since);
  }

  recover() {
    if (!this.failures) return;
    this.failures = 0;
    this.since = null;
    this.handlers.recovered();
  }
}
