// Celery tasks with a due time: stored as celery_delayq stores what a Python process sends with apply_async(countdown=…)
// or (eta=…). A worker of the Python app runs them; its dispatcher hands them over. The broker has to be this Redis.

import { randomUUID } from "node:crypto";
import { hostname } from "node:os";

import { Keys } from "./keys.js";
import { AlreadyScheduled } from "./queue.js";
import { pythonRepr, shortened } from "./repr.js";
import { Scripts } from "./scripts.js";
import { dueOf, micros } from "./times.js";

/** What Celery tells apart processes by. Results in Redis or a database do not use it. */
const REPLY_TO = randomUUID();

/** After so long (s) without a sign of life of any dispatcher nobody is there to hand over what waits. */
const SILENCE = 30;

export class CeleryTasks {
  #scripts;
  #steps;
  #separator;

  /**
   * @param {import("ioredis").Redis} redis the broker
   * @param {object} [options] what differs from Celery's and celery_delayq's defaults
   * @param {string} [options.prefix] `delayq_prefix`
   * @param {string} [options.globalPrefix] `broker_transport_options["global_keyprefix"]`
   * @param {number[]} [options.steps] `broker_transport_options["priority_steps"]`
   * @param {string} [options.separator] `broker_transport_options["sep"]`
   */
  constructor(redis, { prefix, globalPrefix, steps = [0, 3, 6, 9], separator = "\x06\x16" } = {}) {
    this.redis = redis;
    this.keys = new Keys({ prefix, globalPrefix, database: redis.options.db ?? 0 });
    this.#scripts = new Scripts(redis, this.keys);
    this.#steps = steps;
    this.#separator = separator;
  }

  /**
   * Have a Python worker run `task(*args, **kwargs)` at a time.
   * @param {string} task its name, as Python registers it
   * @param {unknown[]} args what JSON can say
   * @param {object} kwargs
   * @param {object} options `at`, a Date, or `delay`, seconds by Redis's clock; and
   * @param {string} [options.id] the task's id, by which it can be cancelled
   * @param {string} [options.queue] where its workers listen; task_routes are Python's, and not known here
   * @param {number} [options.priority]
   * @param {Date} [options.expires] the worker does not run it later than this
   * @param {object} [options.headers] more headers, for the task and for filters
   * @param {"replace" | "keep" | "error"} [options.onConflict] what to do when the id waits already
   * @returns {{id: string, attended: boolean}} attended: whether any dispatcher lives
   */
  async schedule(task, args, kwargs, options) {
    const { at, delay, queue = "celery", priority = 0, onConflict = "replace" } = options;
    const id = options.id ?? randomUUID();
    const message = messageOf(task, args, kwargs, { ...options, id, queue, priority });
    const { index, topics, holds, beat, wake } = this.keys;
    const step = Math.max(...this.#steps.filter((step) => step <= Math.min(Math.max(priority, 0), 9)));
    // "retried": its delivery_tag is given once, so whoever has these very bytes is this message.
    const [word, ...details] = await this.#scripts.call(
      "put",
      [index, topics, holds, beat, ...this.keys.ofTopic(queue)],
      [
        wake, "", onConflict, "retried", micros(SILENCE), "store", 1, queue, this.#deliveryOf(queue),
        1, id, dueOf({ at, delay }), step, "", "", JSON.stringify(message),
      ],
    );
    if (String(word) === "EXISTS") throw new AlreadyScheduled(id);
    return { id, attended: details[1] === 0 };
  }

  /**
   * Take back the task of that id if it still waits, in whatever queue. It is laid aside for the Python workers, one of
   * which marks it REVOKED, and tells the event and the chord of it. False: it does not wait (any more).
   */
  async cancel(id) {
    const { index, topics, holds, rates, totals, aside, remains } = this.keys;
    let gone = 0;
    await this.#scripts.check();
    for (const queue of await this.redis.hkeys(topics)) {
      const keys = [index, topics, holds, rates, totals, aside, remains, ...this.keys.ofTopic(queue)];
      const [deleted] = await this.#scripts.call("delete", keys, ["", queue, 0, id, ""]);
      gone += deleted;
    }
    return gone > 0;
  }

  // Kombu's lists for a queue, one for each priority step; the dispatcher pushes to them.
  #deliveryOf(queue) {
    const lists = this.#steps.map((step) => this.keys.globalPrefix + queue + (step ? this.#separator + step : ""));
    return JSON.stringify([this.#steps, lists, null]);
  }
}

/** The message: Celery's protocol 2 in the envelope of Kombu's Redis transport. */
function messageOf(task, args, kwargs, { id, queue, priority, at, delay, expires, headers }) {
  const now = Date.now();
  const body = [args, kwargs, { callbacks: null, errbacks: null, chain: null, chord: null }];
  const lifetime = expires && Math.max(expires.getTime() - now, 0);
  return {
    body: Buffer.from(JSON.stringify(body)).toString("base64"),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    headers: {
      lang: "py", // the task's, not ours
      task,
      id,
      shadow: null,
      eta: null, // what waits has none: a worker would hold it in its memory. delayq_due gives it to the task again
      expires: expires ? isoformat(expires) : null,
      group: null,
      group_index: null,
      retries: 0,
      timelimit: [null, null],
      root_id: id,
      parent_id: null,
      argsrepr: shortened(pythonRepr(args, "tuple")),
      kwargsrepr: shortened(pythonRepr(kwargs)),
      origin: `gen${process.pid}@${hostname()}`,
      ignore_result: false,
      replaced_task_nesting: 0,
      stamped_headers: null,
      stamps: {},
      ...headers,
    },
    properties: {
      correlation_id: id,
      reply_to: REPLY_TO,
      delivery_mode: 2,
      ...(expires ? { expiration: String(lifetime) } : {}),
      delayq_due: isoformat(at ?? new Date(now + (delay ?? 0) * 1000)),
      delayq_put: now * 1000,
      delivery_info: { exchange: "", routing_key: queue },
      priority,
      body_encoding: "base64",
      delivery_tag: randomUUID(),
    },
  };
}

/** A time as every Python reads it: 3.10 knows no Z. */
const isoformat = (date) => date.toISOString().replace("Z", "+00:00");
