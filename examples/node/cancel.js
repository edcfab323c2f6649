// Takes back a job, whether it waits or somebody is at work on it.
import { argumentsOf, withRedis } from "./delayq/connection.js";
import { DelayQueue } from "./delayq/queue.js";

const [topic, id] = argumentsOf("node cancel.js <topic> <id>", 2);

await withRedis(async (redis) => {
  const gone = await new DelayQueue(redis, topic).delete(id);
  console.log(gone ? `${id} is cancelled` : `there is no ${id}`);
});
