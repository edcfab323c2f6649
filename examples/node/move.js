// Gives a waiting job another due time.
import { argumentsOf, withRedis } from "./delayq/connection.js";
import { DelayQueue } from "./delayq/queue.js";

const [topic, id, seconds] = argumentsOf("node move.js <topic> <id> <seconds from now>", 3);

await withRedis(async (redis) => {
  const moved = await new DelayQueue(redis, topic).move(id, { delay: Number(seconds) });
  console.log(moved ? `${id} is due in ${seconds} s now` : `${id} does not wait`);
});
