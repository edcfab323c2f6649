// The project's Lua files as functions. They are sent by their hash; whole only to a Redis that does not know them.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

// Those of the checkout. Beside an installed celery_delayq they are where this says:
//     python -c "import celery_delayq.lua; print(*celery_delayq.lua.__path__)"
const FOLDER = process.env.DELAYQ_LUA || join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..", "lua");

/** The version of the keys and scripts that this client was written for. */
const VERSION = 1;

class Script {
  constructor(name) {
    this.text = readFileSync(join(FOLDER, `${name}.lua`));
    this.sha = createHash("sha1").update(this.text).digest("hex");
  }

  /** Run it. What Redis answers as a string comes as a Buffer: ids and bodies are bytes. */
  async run(redis, keys, args) {
    try {
      return await redis.evalshaBuffer(this.sha, keys.length, keys, args);
    } catch (error) {
      if (!error.message.startsWith("NOSCRIPT")) throw error; // a new server, a failover, SCRIPT FLUSH
      return await redis.evalBuffer(this.text, keys.length, keys, args);
    }
  }
}

const scripts = new Map();

/** The scripts on one connection, for one key space. The space's version is checked before the first call. */
export class Scripts {
  #redis;
  #keys;
  #checked = null;

  constructor(redis, keys) {
    // It would be put before the keys, but not before the channel, nor before keys that are arguments.
    if (redis.options.keyPrefix) throw new Error("keyPrefix and celery_delayq do not agree: use prefix instead");
    this.#redis = redis;
    this.#keys = keys;
  }

  /** Run the script of that name. */
  async call(name, keys, args) {
    await this.check();
    return await this.#run(name, keys, args);
  }

  /** Before the first use of the key space: make sure that this client knows its version. */
  async check() {
    this.#checked ??= this.#check().catch((error) => {
      this.#checked = null; // the next call tries again
      throw error;
    });
    await this.#checked;
  }

  async #check() {
    const [word, version] = await this.#run("version", [this.#keys.version], [VERSION, "mark"]);
    if (String(word) !== "OK") {
      const space = this.#keys.beginning;
      throw new Error(`the keys ${space}* have version ${version}, this client knows ${VERSION}: take a newer one`);
    }
  }

  async #run(name, keys, args) {
    if (!scripts.has(name)) scripts.set(name, new Script(name));
    try {
      return await scripts.get(name).run(this.#redis, keys, args);
    } catch (error) {
      if (error.name !== "MaxRetriesPerRequestError") throw error;
      throw new Error(`no connection to Redis (${name})`);
    }
  }
}
