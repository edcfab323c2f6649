// Puts a job, to be consumed when it is due.
import { argumentsOf, withRedis } from "./delayq/connection.js";
import { DelayQueue } from "./delayq/queue.js";

const [topic, id, seconds, body] = argumentsOf("node put.js <topic> <id> <seconds from now> <body>", 4);

await withRedis(async (redis) => {
  await new DelayQueue(redis, topic).put(id, body, { delay: Number(seconds) });
  console.log(`${id} is due in ${seconds} s`);
});
