// A queue of jobs with a due time: the verbs. Python's celery_delayq.DelayQueue works on the same keys.

import { randomBytes } from "node:crypto";

import { Keys } from "./keys.js";
import { Scripts } from "./scripts.js";
import { dateOf, dueOf, micros } from "./times.js";

/** A job of this id waits, and was not to be replaced. */
export class AlreadyScheduled extends Error {
  constructor(id) {
    super(`a job with the id ${id} waits already`);
    this.id = id;
  }
}

/** Whoever had these jobs under a lease has them no longer: others may. Of the jobs themselves nothing was touched. */
export class LeaseLost extends Error {
  constructor(jobs) {
    super(`LEASE_LOST: ${jobs.map((job) => job.id).join(", ")}`);
    this.jobs = jobs;
  }
}

/** So many leases that have run out are ended at once, at most. */
const ENDED = 250;

// No ready lists: consumers reserve the jobs. As every client of a queue writes it.
const DELIVERY = "[[],[],null]";

/**
 * One queue in Redis.
 *
 * Ids and bodies are strings or Buffers; what comes back are Buffers. When something is due is `{at: Date}` or
 * `{delay: seconds}`. Other durations are seconds, too.
 */
export class DelayQueue {
  #scripts;

  /**
   * @param {import("ioredis").Redis} redis
   * @param {string} topic
   * @param {{prefix?: string}} [options]
   */
  constructor(redis, topic, { prefix = "delayq" } = {}) {
    if (!topic) throw new Error("a queue needs a name");
    this.redis = redis;
    this.topic = topic;
    this.keys = new Keys({ queue: topic, prefix, database: redis.options.db ?? 0 });
    this.#scripts = new Scripts(redis, this.keys);
  }

  /** Store one job until it is due. */
  async put(id, body, when, options) {
    return await this.putMany([{ id, body, ...when }], options);
  }

  /**
   * Store all of `[{id, body, at or delay}]`, or none. Returns how many were stored: "keep" leaves those that wait
   * already, "replace" puts itself in their place.
   * @param {object} [options]
   * @param {"error" | "keep" | "replace"} [options.onConflict]
   * @param {boolean} [options.again] this very put may have been done: its reply was lost. The same bytes under the same
   *   id are no conflict then
   */
  async putMany(jobs, { onConflict = "error", again = false } = {}) {
    const { index, topics, holds, beat, expiries, wake } = this.keys;
    const of = this.#of();
    const [word, detail] = await this.#scripts.call(
      "put",
      [index, topics, holds, beat, ...of.topic, expiries, ...of.leases],
      [
        wake, "", onConflict, again ? "retried" : "new", "", "store", 1, this.topic, DELIVERY,
        ...jobs.flatMap(({ id, body, ...when }) => [1, id, dueOf(when), 0, "", "", body]),
      ],
    );
    if (String(word) === "EXISTS") throw new AlreadyScheduled(detail);
    return detail;
  }

  /** Take back a job that waits or is reserved. False: there is none. */
  async delete(id) {
    const { index, topics, holds, rates, totals, aside, remains, expiries, ways } = this.keys;
    const of = this.#of();
    const [attempts, ...leases] = of.leases;
    const [gone] = await this.#scripts.call(
      "delete",
      [
        index, topics, holds, rates, totals, aside, remains, ...of.topic,
        attempts, expiries, ways, ...leases, of.dead[0],
      ],
      ["", this.topic, "", id, ""],
    );
    return gone === 1;
  }

  /** Give a waiting job another due time. False: it does not wait. */
  async move(id, when) {
    const { index, holds, wake } = this.keys;
    const [schedule, jobs, ties] = this.#of().topic;
    const [word] = await this.#scripts.call(
      "move",
      [index, holds, schedule, jobs, ties, this.keys.journal],
      [wake, "", this.topic, "", 1, id, dueOf(when), "", ""],
    );
    return String(word) === "OK";
  }

  /**
   * Take up to `limit` due jobs under a lease. Until it is over they are the caller's; he has to ack, release or extend
   * them. Jobs of others, whose lease is over, are due again.
   * @param {object} [options]
   * @param {number} [options.maxAttempts] a job that was reserved so often is dead then
   * @returns jobs, the ones that were due first first; `left`: whether more may leave now; and how long it is until
   *   the next one is due, Infinity if none waits
   */
  async reserve({ limit = 1, lease = 60, maxAttempts } = {}) {
    const { index, topics, holds, rates, totals, aside, remains, expiries, ways } = this.keys;
    const of = this.#of();
    // 40 digits that nobody can guess; each token begins with them.
    const nonce = randomBytes(20).toString("hex");
    const [, , expired, left, now, next, , , tickets, ids, bodies] = await this.#scripts.call(
      "reserve",
      [index, topics, holds, rates, totals, aside, remains, expiries, ways, ...of.topic, ...of.leases],
      ["", this.topic, limit, micros(lease), nonce, ""],
    );
    const jobs = readJobs(tickets, ids, bodies);
    if (!expired) return { jobs, ...outlook(left, now, next) };
    // If that fails, the next look will say so again: what is reserved now must reach the caller.
    const more = await this.requeue({ limit: Math.min(limit, ENDED), maxAttempts }).catch(() => ({ left: true }));
    return { jobs, left: left === 1 || more.left, untilNext: more.untilNext ?? 0 };
  }

  /** Let jobs wait again whose lease has run out. (`reserve` does so, too.) For the rest as `reserve`. */
  async requeue({ limit = ENDED, maxAttempts } = {}) {
    const args = [this.keys.wake, "", this.topic, limit, 0, maxAttempts ?? ""]; // 0: the lease was pause enough
    const [, , left, now, next] = await this.#scripts.call("requeue", this.#endingKeys(), args);
    return outlook(left, now, next);
  }

  /**
   * Take up to `limit` due jobs, once and for all: who dies with them has lost them.
   * @returns jobs without a token, and the rest as `reserve`, but for `untilNext`
   */
  async pull(limit = 1) {
    const { index, topics, holds, rates, totals, aside, remains } = this.keys;
    const of = this.#of();
    const [, , left, , words, bodies] = await this.#scripts.call(
      "pull",
      [index, topics, holds, rates, totals, aside, remains, ...of.topic, of.leases[0]],
      ["", this.topic, limit],
    );
    const jobs = bodies.map((body, place) => ({ id: words[2 * place], body, due: dateOf(Number(words[2 * place + 1])) }));
    return { jobs, left: left === 1 };
  }

  /**
   * Move up to `limit` due jobs' bodies to a Redis list, to be popped from its right end. In a cluster its name has to
   * hold the queue's hash tag.
   * @returns {{moved: number, left: boolean, untilNext: number}} how many were moved, and the rest as `reserve`
   */
  async dispatch(list, limit = 1000) {
    const { index, topics, holds, rates, totals, aside, remains } = this.keys;
    const of = this.#of();
    const [moved, , , left, now, next] = await this.#scripts.call(
      "dispatch",
      [index, topics, holds, rates, totals, aside, remains, ...of.topic, list, of.leases[0]],
      ["", this.topic, limit, "back", "", "", 0],
    );
    return { moved, ...outlook(left, now, next) };
  }

  /** These jobs are done. @throws {LeaseLost} naming those that are not the caller's any more; the others are done */
  async ack(jobs) {
    const { totals, expiries, ways } = this.keys;
    const of = this.#of();
    const [, ...leases] = of.leases;
    const lost = await this.#scripts.call(
      "ack",
      [totals, expiries, ways, ...leases, of.dead[0]],
      [this.topic, ...pairs(jobs)],
    );
    if (lost.length) throw new LeaseLost(lost.map((number) => jobs[number - 1]));
  }

  /** Their leases end so many seconds from now. @throws {LeaseLost} as ack does */
  async extend(jobs, lease) {
    const [, leases, tickets] = this.#of().leases;
    const done = await this.#scripts.call(
      "extend",
      [this.keys.expiries, leases, tickets],
      ["", this.topic, micros(lease), ...pairs(jobs)],
    );
    raiseIfLost(jobs, done);
  }

  /**
   * Give them back, to wait again. @throws {LeaseLost} as ack does
   * @param {object} [options] `at` or `delay`, and
   * @param {number} [options.maxAttempts] one that was reserved so often is dead then
   * @param {string} [options.reason] kept with a dead one
   * @param {boolean} [options.counted] false: nobody has tried anything, this was no attempt
   */
  async release(jobs, { at, delay, maxAttempts, reason = "", counted = true } = {}) {
    const done = await this.#scripts.call(
      "release",
      this.#endingKeys(),
      [
        this.keys.wake, "", this.topic, dueOf({ at, delay }), maxAttempts ?? "", reason, counted ? 1 : 0,
        ...pairs(jobs),
      ],
    );
    raiseIfLost(jobs, done);
  }

  /** Seconds until the first of all leases in this queue runs out; Infinity if nothing is reserved. */
  async untilExpiry() {
    const [score, time] = await Promise.all([this.redis.zscore(this.keys.expiries, this.topic), this.redis.time()]);
    if (score === null) return Infinity;
    const [seconds, us] = time.map(Number);
    return Math.max(Number(score) - micros(seconds) - us, 0) / micros(1);
  }

  #of() {
    return {
      topic: this.keys.ofTopic(this.topic),
      leases: this.keys.ofLeases(this.topic),
      dead: this.keys.ofDead(this.topic),
    };
  }

  /** What a script takes that ends leases. */
  #endingKeys() {
    const { index, topics, holds, totals, expiries, ways } = this.keys;
    const of = this.#of();
    return [index, topics, holds, totals, expiries, ways, ...of.topic, ...of.leases, ...of.dead];
  }
}

const outlook = (left, now, next) => ({
  left: left === 1,
  untilNext: next < 0 ? Infinity : Math.max(next - now, 0) / micros(1),
});

const pairs = (jobs) => jobs.flatMap((job) => [job.id, job.token]);

function raiseIfLost(jobs, done) {
  const lost = jobs.filter((_, number) => done[number] === 0);
  if (lost.length) throw new LeaseLost(lost);
}

/** @returns jobs `{id, body, due, attempts, token}` */
function readJobs(tickets, ids, bodies) {
  if (!bodies.length) return [];
  const names = Array.isArray(ids) ? ids : lines(ids);
  return String(tickets).split("\n").map((ticket, number) => {
    const [token, attempts, due] = ticket.split(" ");
    const [id, body] = [names[number], bodies[number]];
    return { id, body, due: dateOf(Number(due)), attempts: Number(attempts), token };
  });
}

/** Bytes, line by line. */
function lines(bytes) {
  const found = [];
  for (let start = 0, end; start <= bytes.length; start = end + 1) {
    end = bytes.indexOf("\n", start);
    if (end < 0) end = bytes.length;
    found.push(bytes.subarray(start, end));
  }
  return found;
}
