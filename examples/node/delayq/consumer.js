// A consumer: takes jobs when they are due, some at a time, and keeps them for as long as their handlers work.

import { setTimeout as sleep } from "node:timers/promises";

import { Alarm } from "./alarm.js";
import { listen, LONGEST_SLEEP } from "./ear.js";
import { LeaseLost } from "./queue.js";

/** Pauses (s) after an error: the first, and the longest. */
const PAUSE = [0.1, 5];

export class Consumer {
  #queue;
  #handle;
  #options;
  #held = new Set(); // what is under way: {job, controller, atWork, ended}
  #alarm = new Alarm();
  #stopping = false;

  /**
   * @param {import("./queue.js").DelayQueue} queue
   * @param {(job, signal: AbortSignal) => Promise<void>} handle does a job. What it throws gives the job back, to be
   *   tried again later. The signal is aborted when the job is no longer this consumer's
   * @param {object} [options] durations are seconds
   * @param {number} [options.slots] jobs at work at once
   * @param {number} [options.lease] after so long a job is somebody else's if this process dies
   * @param {number} [options.maxAttempts] a job that was tried so often is dead
   * @param {number} [options.patience] how long a stop waits for the jobs at work before it gives them back
   * @param {(text: string) => void} [options.log]
   */
  constructor(queue, handle, options) {
    this.#queue = queue;
    this.#handle = handle;
    this.#options = { slots: 4, lease: 30, maxAttempts: 16, patience: 10, log: console.error, ...options };
  }

  /** Take no more jobs, and let `run` end: when those at work are done, or given back. */
  stop() {
    this.#stopping = true;
    this.#alarm.ring();
  }

  /** Work until somebody calls `stop`. */
  async run() {
    const ear = listen(this.#queue, () => this.#alarm.ring(), this.#options.log);
    const heartbeat = setInterval(() => this.#extend(), (this.#options.lease * 1000) / 3);
    let pause = PAUSE[0];
    while (!this.#stopping) {
      try {
        await this.#alarm.sleep(await this.#takeOnce());
        pause = PAUSE[0];
      } catch (error) {
        this.#options.log(`cannot take jobs: ${error.message}; again in ${pause} s`);
        await this.#alarm.sleep(pause);
        pause = Math.min(pause * 2, PAUSE[1]);
      }
    }
    await this.#finish();
    clearInterval(heartbeat);
    ear.disconnect();
  }

  // Fill the slots that are free. Returns for how long (s) there is nothing to do: until a job is due, or somebody's
  // lease is over, which may be the lease of one who died. (A job that ends rings the alarm.)
  async #takeOnce() {
    const { slots, lease, maxAttempts } = this.#options;
    const free = slots - this.#held.size;
    if (free === 0) return LONGEST_SLEEP;
    const { jobs, left, untilNext } = await this.#queue.reserve({ limit: free, lease, maxAttempts });
    for (const job of jobs) {
      const one = { job, controller: new AbortController(), atWork: true };
      one.ended = this.#work(one).finally(() => {
        this.#held.delete(one);
        this.#alarm.ring();
      });
      this.#held.add(one);
    }
    if (left) return 0;
    return Math.min(untilNext, await this.#queue.untilExpiry(), LONGEST_SLEEP);
  }

  async #work(one) {
    const { maxAttempts, log } = this.#options;
    const { job, controller } = one;
    let end = () => this.#queue.ack([job]);
    try {
      if (!this.#stopping) await this.#handle(job, controller.signal);
      else end = () => this.#queue.release([job], { counted: false }); // it came when it was no longer wanted
    } catch (error) {
      if (controller.signal.aborted) return;
      log(`${job.id} failed: ${error}`);
      const delay = Math.min(2 ** (job.attempts - 1), 60);
      end = () => this.#queue.release([job], { delay, maxAttempts, reason: String(error) });
    }
    one.atWork = false;
    // A job that is done and not acked will be done again: so a Redis that is away for a while does not end this.
    for (let pause = PAUSE[0]; !controller.signal.aborted; pause = Math.min(pause * 2, PAUSE[1])) {
      try {
        return await end();
      } catch (error) {
        if (error instanceof LeaseLost) return log(`${error.message}: another may have done it, too`);
        log(`cannot end ${job.id}: ${error.message}; again in ${pause} s`);
        await sleep(pause * 1000);
      }
    }
  }

  // The heartbeat: keep what is at work. What is lost is lost; its handler is told to leave it.
  async #extend() {
    const jobs = this.#atWork().map((one) => one.job);
    try {
      if (jobs.length) await this.#queue.extend(jobs, this.#options.lease);
    } catch (error) {
      if (!(error instanceof LeaseLost)) return this.#options.log(`cannot extend leases: ${error.message}`);
      for (const one of this.#atWork().filter(({ job }) => error.jobs.includes(job))) {
        this.#options.log(`LEASE_LOST: ${one.job.id}: another may do it, too`);
        one.controller.abort();
      }
    }
  }

  // Those whose handlers work, and have not been told to leave it.
  #atWork() {
    return [...this.#held].filter((one) => one.atWork && !one.controller.signal.aborted);
  }

  async #finish() {
    const { patience, log } = this.#options;
    const timeout = new Alarm();
    const ended = Promise.all([...this.#held].map((one) => one.ended));
    await Promise.race([ended.then(() => timeout.ring()), timeout.sleep(patience)]);
    const left = this.#atWork();
    if (left.length === 0) return;
    for (const one of left) one.controller.abort();
    try {
      await this.#queue.release(left.map((one) => one.job), { counted: false });
      log(`gave back ${left.length} jobs that were not done`);
    } catch (error) {
      log(`cannot give back ${left.length} jobs, they come back when their leases are over: ${error.message}`);
    }
  }
}
