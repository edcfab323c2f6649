// One way for all programs to get to Redis.

import Redis from "ioredis";

/**
 * Connect to `url`. Errors of the connection reach those who wait for an answer.
 * @param {import("ioredis").RedisOptions} [options] by default a program that finds no Redis ends soon
 */
export function connect(url = process.env.REDIS_URL || "redis://localhost:6379/0", options = {}) {
  const redis = new Redis(url, {
    // ioredis would send again what was on its way when the connection broke. It may have been done, and the second
    // answer would be a lie: EXISTS for what was put, LEASE_LOST for what was acked.
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 2,
    ...options,
  });
  let told = "";
  redis.on("error", (error) => {
    if (error.message !== told) console.error(`redis: ${(told = error.message || error.code)}`);
  });
  redis.on("ready", () => (told = ""));
  return redis;
}

/** Do some work on a connection, and end the program; with a message and status 1 if that fails. */
export async function withRedis(work, options) {
  const redis = connect(undefined, options);
  try {
    await work(redis);
  } catch (error) {
    console.error(error.name === "MaxRetriesPerRequestError" ? "Redis cannot be reached" : error.message);
    process.exitCode = 1;
  } finally {
    redis.disconnect();
  }
}

/** The program's arguments; or how to call it, if there are too few. */
export function argumentsOf(usage, least) {
  const words = process.argv.slice(2);
  if (words.length >= least) return words;
  console.error(`usage: ${usage}`);
  process.exit(2);
}
