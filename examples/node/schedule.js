// Schedules a Celery task: a Python worker will run it.
import { argumentsOf, withRedis } from "./delayq/connection.js";
import { CeleryTasks } from "./delayq/celery.js";

const usage = "node schedule.js <task> <seconds from now> [args as JSON] [kwargs as JSON] [queue] [id]";
const [task, seconds, args = "[]", kwargs = "{}", queue, id] = argumentsOf(usage, 2);

await withRedis(async (redis) => {
  const options = { delay: Number(seconds), queue, id, headers: { sender: "node" } };
  const scheduled = await new CeleryTasks(redis).schedule(task, JSON.parse(args), JSON.parse(kwargs), options);
  console.log(scheduled.id);
  if (!scheduled.attended) console.error("it waits, but no worker with celery_delayq lives: start one");
});
