// One way for all programs to get to Redis.

import Redis from "ioredis";

/** Connect to Redis. What is asked fails as soon as the connection does; the next question finds a new connection. */
export function connect(url = process.env.REDIS_URL || "redis://localhost:6379/0") {
  // By default ioredis sends again what was on its way when the connection broke. It may have been done, and the second
  // answer would be a lie: EXISTS for what was put, LEASE_LOST for what was acked. (autoResendUnfulfilledCommands: false
  // is no way out: who waits for such an answer then waits for ever.)
  const redis = new Redis(url, { maxRetriesPerRequest: 0 });
  let told = "";
  redis.on("error", (error) => {
    if (error.message !== told) console.error(`redis: ${(told = error.message || error.code)}`);
  });
  redis.on("ready", () => (told = ""));
  return redis;
}

/** Do some work on a connection, and end the program; with a message and status 1 if that fails. */
export async function withRedis(work) {
  const redis = connect();
  try {
    await work(redis);
  } catch (error) {
    console.error(error.message);
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
