/* cli/main.c: the heddle program: picks the command. */
int main(void)
{
    return 0;
}
