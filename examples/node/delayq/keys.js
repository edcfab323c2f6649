// The names of all keys and channels; nothing else here makes one. docs/lua.md tells what each of them holds.

/** The keys of one key space: of Celery's delayed tasks, or of one queue that has all its keys for itself. */
export class Keys {
  /**
   * @param {object} space
   * @param {string} [space.queue] the topic of a queue; "" for the key space of Celery's tasks
   * @param {string} [space.prefix] as `delayq_prefix`
   * @param {string} [space.globalPrefix] as the `global_keyprefix` of the broker; "" unless it has one
   * @param {number} [space.database] number of the Redis database; channels do not know of databases
   */
  constructor({ queue = "", prefix = "delayq", globalPrefix = "", database = 0 } = {}) {
    if (/[{}]/.test(queue)) throw new Error(`a queue's name may hold no braces: ${queue}`);
    // The braces are a hash tag: a Redis Cluster keeps all keys of the space together. 0 is the number of the shard.
    this.beginning = `${globalPrefix}${prefix}:{${queue ? `0:${queue}` : "0"}}:`;
    this.globalPrefix = globalPrefix;
    this.wake = this.#name(`wake:${database}`);
    this.journal = this.#name("journal:");
    for (const name of ["version", "index", "topics", "holds", "rates", "totals", "aside", "remains", "beat"]) {
      this[name] = this.#name(name);
    }
    this.expiries = this.#name("expiries");
    this.ways = this.#name("ways");
  }

  #name(text) {
    return this.beginning + text;
  }

  /** A key of one topic. */
  of(topic, name) {
    return this.#name(`${name}:${topic}`);
  }

  /** Those of a topic's waiting jobs, in the order in which every script takes them. */
  ofTopic(topic) {
    return ["schedule", "jobs", "ties", "steps", "firsts", "graces"].map((name) => this.of(topic, name));
  }

  /** Those of its leases. */
  ofLeases(topic) {
    return ["attempts", "leases", "tickets", "reserved"].map((name) => this.of(topic, name));
  }

  /** Those of its dead jobs. */
  ofDead(topic) {
    return ["dead", "letters", "causes"].map((name) => this.of(topic, name));
  }
}
