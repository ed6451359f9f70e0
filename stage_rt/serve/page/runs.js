// The runs that were ordered, and how far they are.

import { ask, read } from "./api.js";
import { words } from "./words.js";

const EVERY = 2000;

export class Runs {
  constructor(list, failed) {
    this.list = list;
    this.failed = failed;
    this.timer = null;
  }

  async look() {
    clearTimeout(this.timer);
    let jobs = [];
    try {
      jobs = await read("/v1/jobs");
      this.list.replaceChildren(...jobs.map((job) => this.line(job)));
      if (!jobs.length) this.list.append(Object.assign(document.createElement("li"), { textContent: words.noRuns }));
    } catch (error) {
      this.failed(error);
    }
    const open = jobs.some((job) => ["waiting", "painting"].includes(job.state));
    this.timer = setTimeout(() => this.look(), open ? EVERY : 10 * EVERY);
  }

  line(job) {
    const line = document.createElement("li");
    line.dataset.state = job.state;
    line.append(words.run(job, job.prompt.split("+").pop()), " ");
    if (job.error) line.append(Object.assign(document.createElement("span"), { className: "bad", textContent: job.error }));
    if (["waiting", "painting"].includes(job.state)) {
      line.append(Object.assign(document.createElement("progress"), { max: 1, value: job.share }));
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: words.cancel });
      button.addEventListener("click", async () => {
        button.disabled = true;
        await ask("DELETE", `/v1/jobs/${job.id}`).catch(this.failed);
        this.look();
      });
      line.append(button);
    }
    if (job.report) line.append(Object.assign(document.createElement("a"), { href: job.report, textContent: words.report }));
    return line;
  }
}
